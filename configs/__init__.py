"""The recipes: one file each with `get_config()`, and base.py with every knob.

The package has this folder as ijepa_jax.configs, by a link here and as files of
its own where it is installed. So recipes import one another from there, and a
copy of one works wherever it lies.
"""
