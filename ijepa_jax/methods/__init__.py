"""What is learned: section 3 of the paper (ijepa.py), and how it is optimized.

May import models. The workers of the input pipeline import masks.py, so that
this file imports nothing.
"""
