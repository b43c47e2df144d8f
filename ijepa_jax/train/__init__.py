"""A training run, from its config to its report.

May import pretrained, probes, data, methods, models and runtime.
"""
