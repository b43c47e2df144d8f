"""What a label can be read from frozen features: arrays in, accuracies out.

May import methods, models and runtime.
"""
