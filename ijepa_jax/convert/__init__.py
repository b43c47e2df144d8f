"""Converts a model to another form: python -m ijepa_jax.convert.

May import pretrained, data, methods, models and runtime.
"""
