"""Takes images from a source to batches on the devices.

May import runtime. The workers have no JAX, so that this file imports nothing.
"""
