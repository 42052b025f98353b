"""The version, in a file of its own that is read without importing the package, and Keras with it."""

__version__ = "0.1.0"
