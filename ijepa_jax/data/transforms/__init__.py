"""Transforms of an encoded image to the pixels of a batch.

May import data/decode.py. The workers have no JAX, so that
this file imports nothing.
"""
