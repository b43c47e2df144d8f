"""A page on this machine that shows runs while they train.

May import train, visualize and all that they may.
"""
