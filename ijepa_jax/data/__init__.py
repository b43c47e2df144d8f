"""From a source of images to batches on the devices.

May import runtime. Its workers need no JAX: this file imports nothing.
"""
