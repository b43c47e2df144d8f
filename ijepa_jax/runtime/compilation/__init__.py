"""What XLA compiled, kept for the next start.

May import `errors` and the rest of `runtime`.
"""
