"""The public sets.

`__all__` is the one list of their names, which `inbounds` and `inbounds.constraints` repeat.
"""

from inbounds._sets.custom import Custom
from inbounds._sets.entries import Box, Fixed, NonNeg, NonPos
from inbounds._sets.equal import Equal
from inbounds._sets.grid import Grid
from inbounds._sets.group_sparsity import GroupL1Ball, GroupSparse
from inbounds._sets.joint import Joint, Tied, Together
from inbounds._sets.marginals import DoublyStochastic, Marginals
from inbounds._sets.matrices import SkewSymmetric, Symmetric, ZeroDiagonal
from inbounds._sets.norms import FrobeniusNorm, MaxNorm, MinMaxNorm, UnitNorm
from inbounds._sets.order import Monotone
from inbounds._sets.sparsity import Sparse
from inbounds._sets.spectral import LowRank, NuclearNorm, Orthogonal, PositiveSemidefinite, SpectralNorm
from inbounds._sets.sums import Halfspace, Hyperplane, L1Ball, Simplex, SumTo

max_norm = MaxNorm
min_max_norm = MinMaxNorm
non_neg = NonNeg
unit_norm = UnitNorm

__all__ = ["Box", "Custom", "DoublyStochastic", "Equal", "Fixed", "FrobeniusNorm", "Grid"]
__all__ += ["GroupL1Ball", "GroupSparse", "Halfspace", "Hyperplane", "Joint", "L1Ball", "LowRank"]
__all__ += ["Marginals", "MaxNorm", "MinMaxNorm", "Monotone", "NonNeg", "NonPos", "NuclearNorm"]
__all__ += ["Orthogonal", "PositiveSemidefinite", "Simplex", "SkewSymmetric", "Sparse"]
__all__ += ["SpectralNorm", "SumTo", "Symmetric", "Tied", "Together", "UnitNorm", "ZeroDiagonal"]
__all__ += ["max_norm", "min_max_norm", "non_neg", "unit_norm"]
