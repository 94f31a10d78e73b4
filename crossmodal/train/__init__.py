"""Training: the loop, its objective, evaluation, checkpoints."""

from crossmodal.train.checkpoint import load_checkpoint, save_checkpoint
from crossmodal.train.config import TrainConfig, make_config, read_config
from crossmodal.train.evaluate import Evaluation, evaluate
from crossmodal.train.fit import History, Schedule, fit
from crossmodal.train.objective import cross_entropy_over_sets, loss_over_sets
from crossmodal.train.run import RunError, resume_run, start_run

__all__ = [
    "Evaluation",
    "History",
    "RunError",
    "Schedule",
    "TrainConfig",
    "cross_entropy_over_sets",
    "evaluate",
    "fit",
    "load_checkpoint",
    "loss_over_sets",
    "make_config",
    "read_config",
    "resume_run",
    "save_checkpoint",
    "start_run",
]
