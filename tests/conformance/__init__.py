"""The conformance matrix: every set, layer, optimizer and situation, on the backend at hand.

`sets`, `layers`, `optimizers` and `situations` are its axes, tables that are written down apart
from inbounds. `matrix` makes cells of them and samples these, `cell` runs one, and `report` prints
what was covered.
"""
