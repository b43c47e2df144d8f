"""The embedded pictures: labelled scenes that are drawn here.

May import data and runtime.
"""
