"""How good the models are on the test samples, with everything, with less, and with noise."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from crossmodal.data.batch import Batch
from crossmodal.data.digit_trio import DigitTrio
from crossmodal.models import FusionClassifier
from crossmodal.train.evaluate import Evaluation, evaluate


class Scores(NamedTuple):
    """Test accuracies in [0, 1].

    Attributes:
        single: each modality's own model.
        fused: the model of all modalities, given all of them.
        missing: the same model, one modality missing.
        noise: the same model, one modality replaced by noise without being told.
        log_probability_sum: the answers of the single models multiplied. The modalities are independent
            given the digit, so that this is near the best that can be done: the bar for any fusion.
    """

    single: dict[str, float]
    fused: float
    missing: dict[str, float]
    noise: dict[str, float]
    log_probability_sum: float


def score(
    fused: FusionClassifier,
    single: Mapping[str, FusionClassifier],
    data: DigitTrio,
    batches: Sequence[Batch],
) -> Scores:
    """Evaluate on ``batches``, which nothing was chosen by."""
    alone = {name: evaluate(model, [batch.only(name) for batch in batches]) for name, model in single.items()}
    summed = torch.stack([result.log_probabilities for result in alone.values()]).sum(0)
    together = evaluate(fused, batches)
    return Scores(
        single={name: result.accuracy for name, result in alone.items()},
        fused=together.accuracy,
        missing={
            name: evaluate(fused, [batch.without(name) for batch in batches]).accuracy for name in fused.modalities
        },
        noise={
            name: evaluate(fused, [data.turned_to_noise(batch, name) for batch in batches]).accuracy
            for name in fused.modalities
        },
        log_probability_sum=Evaluation(summed, together.labels).accuracy,
    )


def score_table(scores: Scores, samples: int) -> str:
    """The scores as a table of text."""
    names = list(scores.single)
    rows = [
        (f"test accuracy, {samples:,} samples", names),
        ("one modality alone", [f"{scores.single[name]:.3f}" for name in names]),
        ("fused, this one missing", [f"{scores.missing[name]:.3f}" for name in names]),
        ("fused, this one turned to noise", [f"{scores.noise[name]:.3f}" for name in names]),
    ]
    lines = [f"{title:<34}" + "".join(f"{cell:>9}" for cell in cells) for title, cells in rows]
    lines.insert(1, "-" * len(lines[0]))
    lines.append(f"{'fused, all there':<34}{scores.fused:>9.3f}")
    lines.append(f"{'three single models, multiplied':<34}{scores.log_probability_sum:>9.3f}")
    return "\n".join(lines)
