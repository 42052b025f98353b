"""The cells of the matrix are small models."""

from small import small_models

__all__ = ["small_models"]
