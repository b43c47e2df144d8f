"""The source of a tree of image files, and the listing of the tree.

May import data/sources/base.py, data/decode.py and runtime.
"""

from ijepa_jax.data.sources.folder.source import Folder

__all__ = ['Folder']
