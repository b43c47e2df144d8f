"""Any config compiled for chips that are not there: python -m ijepa_jax.plan.

May import evals, train, pretrained, methods, models and runtime.
"""
