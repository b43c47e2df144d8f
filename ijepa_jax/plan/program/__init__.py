"""What the text of a compiled program tells: loops, what is sent, an estimate.

May import nothing but what chips have, plan/chips.py.
"""
