"""The one table of all sets. A new set is a new row.

What a row says of its set comes from NumPy's formulas and CVXPY's sets, in float64, and from
nothing of ours.
"""

from __future__ import annotations

from dataclasses import replace

from sets.case import Case
from sets.tables import algebra, combine, entries, grid, groups, matrices, norms, order, sparsity, spectral, sums

FAMILIES = (entries, grid, groups, norms, sums, sparsity, combine)
SLOW = (order, matrices, spectral, algebra)

SETS: dict[str, Case] = {name: case for family in FAMILIES for name, case in family.SETS.items()} | {
    name: replace(case, slow=True) for family in SLOW for name, case in family.SETS.items()
}
