"""The source of Hugging Face data sets, and the choice of their columns.

May import data/sources/base.py and runtime.
"""

from ijepa_jax.data.sources.huggingface.source import HuggingFace

__all__ = ['HuggingFace']
