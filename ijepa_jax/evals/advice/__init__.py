"""What helps a person who evaluates: a default task, doubts about a result.

May import what evals may, and no job of evals.
"""
