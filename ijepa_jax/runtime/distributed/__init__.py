"""Starts the processes of a job under any launcher.

May import `errors` and runtime.
"""
