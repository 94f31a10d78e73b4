"""Models: encoders, common space, fusion and a task head, ready to train."""

from crossmodal.models.fusion import FUSIONS, Form, Fusion, build_fusion
from crossmodal.models.fusion_classifier import FusionClassifier, FusionOutput
from crossmodal.models.modality_dropout import modality_sets
from crossmodal.blocks.operators import Implementation

__all__ = [
    "FUSIONS",
    "Form",
    "Fusion",
    "FusionClassifier",
    "FusionOutput",
    "Implementation",
    "build_fusion",
    "modality_sets",
]
