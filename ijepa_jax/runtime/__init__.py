"""The machine: processes, devices, and what a job leaves on disk.

May import `errors` alone.
"""
