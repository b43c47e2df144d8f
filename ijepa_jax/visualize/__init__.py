"""What the predictor predicts, as pictures and numbers; a job of main.py.

May import train, pretrained, probes, data, methods, models and runtime.
"""
