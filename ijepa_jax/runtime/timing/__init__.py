"""Where the wall time of a run goes, over all its starts.

May import `errors` and the rest of `runtime`.
"""
