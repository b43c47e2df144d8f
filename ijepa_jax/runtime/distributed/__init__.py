"""Starts the processes of a job, whoever launches them.

May import `errors` and runtime.
"""
