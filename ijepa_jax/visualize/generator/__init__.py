"""A generator that draws what one predicted vector holds, and how it is read.

May import visualize, train, data, methods, models and runtime.
"""
