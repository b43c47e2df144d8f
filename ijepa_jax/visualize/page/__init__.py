"""The page: what was computed, as one HTML file.

May import visualize, train and runtime.
"""
