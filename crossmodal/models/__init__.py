"""Models: encoders, common space, fusion and a task head, ready to train."""

from crossmodal.blocks.operators import Implementation
from crossmodal.models.adversary import critic_loss, discriminator_loss, gradient_penalty
from crossmodal.models.alignment import discriminator_accuracy, modality_gap, recall_at
from crossmodal.models.captioner import Captioner
from crossmodal.models.codebook import SharedCodebook
from crossmodal.models.contrastive import hardest_negatives, info_nce, sigmoid_loss
from crossmodal.models.ctc import ctc_loss, error_rate, greedy_decode
from crossmodal.models.fusion import FUSIONS, Form, Fusion, build_fusion
from crossmodal.models.fusion_classifier import FusionClassifier, FusionOutput
from crossmodal.models.modality_dropout import modality_sets
from crossmodal.models.positions import Positions
from crossmodal.models.questions import Questions
from crossmodal.models.transcriber import Transcriber
from crossmodal.models.two_tower import Embeddings, TwoTower

__all__ = [
    "FUSIONS",
    "Captioner",
    "Embeddings",
    "Form",
    "Fusion",
    "FusionClassifier",
    "FusionOutput",
    "Implementation",
    "Positions",
    "Questions",
    "SharedCodebook",
    "Transcriber",
    "TwoTower",
    "build_fusion",
    "critic_loss",
    "ctc_loss",
    "discriminator_accuracy",
    "discriminator_loss",
    "error_rate",
    "gradient_penalty",
    "greedy_decode",
    "hardest_negatives",
    "info_nce",
    "modality_gap",
    "modality_sets",
    "recall_at",
    "sigmoid_loss",
]
