"""Anybody's I-JEPA: from any path to weights, an encoder and features.

May import methods, models, data and runtime.
"""
