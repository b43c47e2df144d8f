"""Pictures of what a model sees: masks on images, and tokens as colors.

May import all that train may.
"""
