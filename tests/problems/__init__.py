"""Problems as data: what a random test draws, prints when it fails, and turns into tensors."""

from tests.problems.association import Association
from tests.problems.feature_order import FeatureOrder
from tests.problems.fusion import Fusion, FusionTensors, Modality
from tests.problems.layouts import LAYOUTS, lay_out
from tests.problems.terms import Sink, Term
from tests.problems.varlen import Varlen
from tests.problems.weighted_sum import WeightedSum, WeightedSumTensors

__all__ = [
    "LAYOUTS",
    "Association",
    "FeatureOrder",
    "Fusion",
    "FusionTensors",
    "Modality",
    "Sink",
    "Term",
    "Varlen",
    "WeightedSum",
    "WeightedSumTensors",
    "lay_out",
]
