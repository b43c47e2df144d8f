"""Checkpoints of a state: written by rules, and read where they are whole.

May import `errors` and runtime.
"""
