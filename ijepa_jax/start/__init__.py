"""From a folder of images to a training: what to train, and how long it takes.

May import train and all that it may, and the recipe configs/photos.py.
"""
