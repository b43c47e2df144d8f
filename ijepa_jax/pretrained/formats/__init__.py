"""One file for each format of weights, with reading and writing in it.

May import data, methods, models and runtime.
"""
