"""Models: encoders, common space, fusion and a task head, ready to train."""

from crossmodal.models.fusion_classifier import FusionClassifier, FusionOutput, Implementation
from crossmodal.models.modality_dropout import modality_sets

__all__ = ["FusionClassifier", "FusionOutput", "Implementation", "modality_sets"]
