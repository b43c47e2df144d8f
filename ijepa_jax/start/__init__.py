"""From a folder of images to a training: what to train, and how long it takes.

May import recipes, train and all that they may.
"""
