"""I-JEPA in JAX and Flax."""
