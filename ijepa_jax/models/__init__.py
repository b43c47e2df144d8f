"""The networks; Flax is known nowhere else.

May import `errors` alone.
"""
