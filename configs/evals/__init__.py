"""The evaluations: settings of a job each, on those of common.py."""
