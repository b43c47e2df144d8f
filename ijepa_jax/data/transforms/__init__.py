"""From an encoded image to the pixels of a batch.

May import data/decode.py. Its workers need no JAX: this file imports nothing.
"""
