"""Arrays of NumPy and of the backends: operations, rounding, units, rows and decompositions."""
