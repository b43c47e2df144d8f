"""The evaluations of the paper: a file a job, a job a file in configs/evals.

May import train, pretrained, probes, data, methods, models and runtime.
"""
