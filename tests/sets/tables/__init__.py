"""The table of all sets, a family a module."""
