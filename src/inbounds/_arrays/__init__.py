"""Arrays of NumPy and of the backends in one vocabulary: operations, rounding, units, and weights laid out as rows."""
