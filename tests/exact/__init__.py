"""The operators by their formulas, forward and backward, in numpy at a precision of choice.

Written a second time and on purpose not with torch: an error in `crossmodal.reference`, which kernels are compared
with too, cannot hide here. Gradients are the formulas, not automatic differentiation.
"""

from tests.exact.arrays import Exact, wider_than
from tests.exact.association import ExactAssociation
from tests.exact.fusion import ExactFusion
from tests.exact.varlen import ExactVarlen
from tests.exact.weighted_sum import ExactSoftmaxWeightedSum, ExactWeightedSum

ExactProblem = ExactAssociation | ExactFusion | ExactVarlen | ExactWeightedSum

__all__ = [
    "Exact",
    "ExactAssociation",
    "ExactFusion",
    "ExactProblem",
    "ExactSoftmaxWeightedSum",
    "ExactVarlen",
    "ExactWeightedSum",
    "wider_than",
]
