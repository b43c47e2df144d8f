"""Any config compiled for chips that are not there: python -m ijepa_jax.plan.

May import: runtime, models, methods, train.
"""
