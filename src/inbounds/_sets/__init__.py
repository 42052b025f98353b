"""The sets: what one is, what its arguments may be, and a module for each family."""
