"""The learner of each kind of model."""

from typing import Any

from crossmodal.train.config import TrainConfig
from crossmodal.train.learner import ClassifierLearner, Learner
from crossmodal.train.retrieval import RetrievalLearner
from crossmodal.train.transcription import TranscriptionLearner


def make_learner(description: dict[str, Any], config: TrainConfig) -> Learner:
    """For a model of this description, trained with these settings.

    Raises:
        ValueError: when the settings do not fit the model.
    """
    modalities = tuple(description["modalities"])
    if description["kind"] == "two_tower":
        return RetrievalLearner(
            modalities,
            loss=config.contrastive,
            hardness=config.hardness,
            strength=config.adversary_strength,
            adversary_steps=config.adversary_steps,
            adversary_rate=config.adversary_rate,
            alike=config.adversary == "discriminator",
        )
    if description["kind"] in ("transcriber", "captioner"):
        return TranscriptionLearner(
            modalities, modality_dropout=config.modality_dropout, auxiliary_weight=config.auxiliary_weight
        )
    return ClassifierLearner(
        description["task"],
        modalities,
        every_set=config.sets,
        modality_dropout=config.modality_dropout,
        spoiled=config.spoiled,
        expert_weight=config.expert_weight,
        auxiliary_weight=config.auxiliary_weight,
        smoothing=config.smoothing,
    )
