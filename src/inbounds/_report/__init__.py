"""Readers of weights: audits, reports, the monitor, and the pressure of bounds."""
