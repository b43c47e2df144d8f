"""Hands a model on in another form: python -m ijepa_jax.convert.

May import pretrained, methods, models and runtime.
"""
