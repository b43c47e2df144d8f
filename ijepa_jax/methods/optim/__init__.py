"""How parameters move: AdamW, and schedules over the steps.

May import errors, runtime and models, as its room.
"""
