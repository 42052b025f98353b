"""The sets, one module a family."""
