"""Packs images into shards: python -m ijepa_jax.data.pack.

May import data and runtime.
"""
