"""Training: the loop, its objective, evaluation, checkpoints."""

from crossmodal.train.checkpoint import load_checkpoint, save_checkpoint
from crossmodal.train.evaluate import Evaluation, evaluate
from crossmodal.train.fit import History, Schedule, fit
from crossmodal.train.objective import cross_entropy_over_sets

__all__ = [
    "Evaluation",
    "History",
    "Schedule",
    "cross_entropy_over_sets",
    "evaluate",
    "fit",
    "load_checkpoint",
    "save_checkpoint",
]
