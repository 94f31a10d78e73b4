"""Training and evaluation of two towers."""

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from crossmodal.data.batch import Batch
from crossmodal.models.alignment import discriminator_accuracy, modality_gap, recall_at
from crossmodal.models.contrastive import info_nce, sigmoid_loss
from crossmodal.models.two_tower import TwoTower
from crossmodal.train.learner import Answers, Learner, Step
from crossmodal.train.opponent import Opponent, adversarial_loss

_PAIRS = 4096  # that are told apart: enough for a percent
_CELLS = 2**25  # of a matrix of cosines: 128 MiB in float32


class RetrievalLearner(Learner):
    """For :class:`crossmodal.models.TwoTower` of two modalities; samples of the same class belong together.

    Samples that lack one of the two are left out of training, and of evaluation.

    Args:
        modalities: the two.
        loss: ``"info_nce"`` or ``"sigmoid"``.
        hardness: of :func:`info_nce`.
        strength: of the gradient that the towers get from their adversary, where they have one.
        adversary_steps: of its own that the adversary takes before each of the towers'
            (:class:`crossmodal.train.opponent.Opponent`); 0: it learns with the towers, by their optimizer.
        adversary_rate: learning rate of those.
        alike: whether the modalities are to look alike, as a discriminator makes them: an epoch is then the worse the
            better they are told apart.

    Raises:
        ValueError: when there are not two modalities, or for an unknown loss.
    """

    def __init__(
        self,
        modalities: tuple[str, ...],
        *,
        loss: str = "info_nce",
        hardness: float = 0.0,
        strength: float = 0.1,
        adversary_steps: int = 0,
        adversary_rate: float = 5e-3,
        alike: bool = False,
    ) -> None:
        if len(modalities) != 2:
            raise ValueError(f"modalities must be two for retrieval, got {', '.join(modalities)}")
        if loss not in ("info_nce", "sigmoid"):
            raise ValueError(f"loss must be info_nce or sigmoid, got {loss!r}")
        self.modalities, self.loss, self.hardness = modalities, loss, hardness
        self.strength, self.alike = strength, alike
        self.adversary_steps, self.adversary_rate = adversary_steps, adversary_rate
        self._opponent: Opponent | None = None

    def prepare(self, model: nn.Module) -> None:
        if isinstance(model, TwoTower) and model.adversary is not None and self.adversary_steps:
            self._opponent = Opponent(model.adversary, steps=self.adversary_steps, rate=self.adversary_rate)

    def state(self) -> dict[str, Any]:
        return {} if self._opponent is None else self._opponent.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        if self._opponent is not None:
            self._opponent.load_state(state)

    def step(self, model: nn.Module, batch: Batch) -> Step:
        batch = batch.only(*self.modalities)
        towers = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        assert isinstance(towers, TwoTower)
        vectors, present = model(batch.inputs, batch.lengths)
        both = present[self.modalities[0]] & present[self.modalities[1]]
        first, second = (vectors[name][both].float() for name in self.modalities)
        labels = batch.labels[both]
        same = labels.unsqueeze(1) == labels
        cosines = first @ second.T
        if self.loss == "info_nce":
            loss = info_nce(cosines, towers.scale, same=same, hardness=self.hardness) + 0.0 * towers.shift
        else:
            loss = sigmoid_loss(cosines, towers.scale, towers.shift, same=same)
        shown = {
            "loss": loss.detach() * len(labels),
            # Of no pair there is no nearest; the losses of none are 0.
            "accuracy": same.gather(1, cosines.argmax(1, keepdim=True)).sum() if len(labels) else same.sum(),
        }
        if towers.adversary is not None:
            loss = loss + self._adversarial(towers, first, second)
        return Step(loss, shown, len(labels))

    @torch.no_grad()
    def answer(self, model: nn.Module, batches: Iterable[Batch]) -> Answers:
        outputs, labels, asked = [], [], []
        for batch in batches:
            batch = batch.only(*self.modalities)
            vectors, present = model(batch.inputs, batch.lengths)
            both = present[self.modalities[0]] & present[self.modalities[1]]
            outputs.append(torch.cat([vectors[name][both].float().cpu() for name in self.modalities], 1))
            labels.append(batch.labels[both.to(batch.labels.device)].cpu())
            if self.alike:
                asked.append(torch.stack([_numbers(batch, name) for name in self.modalities], 1)[both.cpu()])
        if not sum(map(len, labels)):
            raise ValueError(f"no sample of the data has both {' and '.join(self.modalities)}: nothing to retrieve")
        return Answers(torch.cat(outputs), torch.cat(labels), torch.cat(asked) if asked else None)

    def measure(self, answers: Answers) -> dict[str, float]:
        """``accuracy`` is recall@1 by class from the first modality to the second; ``loss`` is 1 minus the mean of it
        and of the other direction's, ``gap`` the modality gap.

        Where modalities are to look ``alike``, ``told_apart`` is how often a perceptron, trained anew on half of the
        inputs of each, is right about the others (:func:`discriminator_accuracy`), and what that is above chance adds
        to ``loss``. It is not said where a modality has less than two different inputs.
        """
        first, second = answers.outputs.chunk(2, dim=1)
        there, at_5 = _recalls(first, second, answers.labels, (1, 5))
        (back,) = _recalls(second, first, answers.labels, (1,))
        found = {
            "loss": 1 - 0.5 * (there + back),
            "accuracy": there,
            "accuracy_back": back,
            "recall_at_5": at_5,
            "gap": modality_gap(first, second),
        }
        if answers.asked is not None and (answers.asked[:_PAIRS] != answers.asked[0]).any(0).all():
            halves = [_halves(*each) for each in zip((first, second), answers.asked.T, strict=True)]
            found["told_apart"] = discriminator_accuracy(*(_as_many(*half) for half in zip(*halves, strict=True)))
            found["loss"] += max(0.0, found["told_apart"] - 0.5)
        return found

    def _adversarial(self, towers: TwoTower, first: Tensor, second: Tensor) -> Tensor:
        assert towers.adversary is not None
        if not self.adversary_steps:
            return adversarial_loss(towers.adversary, first, second, self.strength)
        if self._opponent is None:
            self.prepare(towers)
        assert self._opponent is not None
        with torch.autocast(first.device.type, enabled=False):
            self._opponent.learn(first, second)
            return adversarial_loss(towers.adversary, first, second, self.strength, penalty=0.0)


def _numbers(batch: Batch, modality: str) -> Tensor:
    """``(B,)`` int64 on the CPU, of equal inputs the same number."""
    rows, lengths = batch.inputs[modality].cpu(), batch.lengths[modality].tolist()
    # Of sequences without what fills them up, which depends on the others in the batch.
    own = (row if row.ndim > 1 else row[:length] for row, length in zip(rows, lengths, strict=True))
    return torch.tensor([zlib.crc32(row.contiguous().numpy()) for row in own])


def _halves(vectors: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings ``(N, width)`` in two sets, none of which has one of an input that the other has: a recording that
    stands beside several images would be learnt from and judged on.

    Args:
        asked: ``(N,)`` int64, equal for equal inputs.
    """
    vectors, half = vectors[:_PAIRS], asked[:_PAIRS].unique(return_inverse=True)[1] % 2
    return vectors[half == 0], vectors[half == 1]


def _as_many(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """As many of the one as of the other, so that chance is 0.5."""
    count = min(len(first), len(second))
    return first[:count], second[:count]


def _recalls(queries: Tensor, columns: Tensor, labels: Tensor, counts: tuple[int, ...]) -> list[float]:
    """:func:`recall_at` each count: some rows at a time, as the cosines of all would fill the memory.

    Args:
        queries, columns: embeddings, ``(N, width)`` float32 of length 1.
        labels: ``(N,)`` of both; the same label belongs together.
        counts: how many columns are looked at.
    """
    rows = max(1, _CELLS // len(columns))
    found = [0.0 for _ in counts]
    for some, wanted in zip(queries.split(rows), labels.split(rows), strict=True):
        cosines, same = some @ columns.T, wanted.unsqueeze(1) == labels
        found = [sum_ + len(some) * recall_at(cosines, same, k) for sum_, k in zip(found, counts, strict=True)]
    return [sum_ / len(queries) for sum_ in found]
