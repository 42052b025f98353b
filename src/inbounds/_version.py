"""The version, in its own file, so that it is read without importing the package and Keras."""

__version__ = "0.1.0"
