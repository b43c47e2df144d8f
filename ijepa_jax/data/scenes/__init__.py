"""Draws the embedded pictures: labelled scenes, so that no data set is needed.

May import data and runtime.
"""
