"""What a model is trained for: its loss on a batch, and how good it is."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from crossmodal.data.batch import Batch
from crossmodal.data.sample import Task
from crossmodal.models.modality_dropout import modality_sets
from crossmodal.train.measures import quality_of
from crossmodal.train.objective import auxiliary_loss, loss_over_sets, loss_per_sample


class Step(NamedTuple):
    """What came of one batch.

    Attributes:
        loss: scalar, to be minimised.
        shown: sums over the samples, for people, by name.
        samples: how many there were.
    """

    loss: Tensor
    shown: dict[str, Tensor]
    samples: int


class Answers(NamedTuple):
    """A model's answers to a data set.

    Attributes:
        outputs: ``(N, outputs)`` float32: logits, or embeddings by modality one beside the other.
        labels: ``(N,)`` or ``(N, outputs)``.
        asked: ``(N, modalities)`` int64, equal for equal inputs, where that matters.
    """

    outputs: Tensor
    labels: Tensor
    asked: Tensor | None = None


class Learner(Protocol):
    """Training and evaluation of one kind of model; the loop knows no more about it."""

    def step(self, model: nn.Module, batch: Batch) -> Step:
        """The loss of a batch."""

    def answer(self, model: nn.Module, batches: Iterable[Batch]) -> Answers:
        """The answers of a model in evaluation mode."""

    def measure(self, answers: Answers) -> dict[str, float]:
        """How good they are; has ``loss``, by which the best epoch is chosen, and ``accuracy``."""

    def prepare(self, model: nn.Module) -> None:
        """Called once with the model on its device, before an optimizer or other processes get hold of it."""
        return

    def state(self) -> dict[str, Any]:
        """What it remembers from step to step, beside the model: tensors, in mappings by name."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state`."""
        return


class ClassifierLearner(Learner):
    """For :class:`crossmodal.models.FusionClassifier`, and the tasks of :data:`crossmodal.data.sample.Task`.

    Args:
        task: what the labels are.
        modalities: in the order of the model.
        every_set: learn from every set of modalities in each step.
        modality_dropout: share of each modality's inputs hidden at random.
        spoiled: share of each modality's inputs replaced by noise.
        expert_weight, auxiliary_weight: of these losses.
        smoothing: of labels.
    """

    def __init__(
        self,
        task: Task,
        modalities: tuple[str, ...],
        *,
        every_set: bool = True,
        modality_dropout: float = 0.0,
        spoiled: float = 0.0,
        expert_weight: float = 1.0,
        auxiliary_weight: float = 1.0,
        smoothing: float = 0.0,
    ) -> None:
        self.task, self.modalities = task, modalities
        self.modality_dropout, self.spoiled = modality_dropout, spoiled
        self.expert_weight, self.auxiliary_weight = expert_weight, auxiliary_weight
        self.smoothing = smoothing
        sets = modality_sets(len(modalities))
        self.sets = sets if every_set else sets[:1]

    def prepare(self, model: nn.Module) -> None:
        """Raises ValueError when so many inputs cannot be spoiled, one modality of a sample at most."""
        if self.spoiled * len(self.modalities) > 1:
            most = f"1/{len(self.modalities)}, one modality of a sample at most"
            raise ValueError(f"spoiled must be at most {most}, got {self.spoiled}")

    def step(self, model: nn.Module, batch: Batch) -> Step:
        batch = batch.only(*self.modalities)
        batch, spoiled = spoil(batch, self.spoiled)
        batch = hide(batch, self.modality_dropout)
        output = model(batch.inputs, batch.lengths, sets=self.sets.to(batch.labels.device))
        present = {name: (batch.lengths[name] > 0) & ~spoiled[name] for name in self.modalities}
        # Every mean is over the batch, present or not: two processes with half of it each minimise the same.
        objective = loss_over_sets(
            output.logits, batch.labels, self.sets, present, self.task, self.smoothing, over_batch=True
        )
        loss = objective.total
        for name, logits in output.experts.items():
            each = loss_per_sample(logits, batch.labels, self.task, self.smoothing)
            loss = loss + self.expert_weight * (each * present[name]).mean()
        easier = auxiliary_loss(output.auxiliary, batch.auxiliary, present, self.smoothing)
        loss = loss + self.auxiliary_weight * easier
        samples = len(batch.labels)
        shown = {"loss": objective.full.detach() * samples}
        if self.task == "classification":
            shown["accuracy"] = (output.logits[0].argmax(1) == batch.labels).sum()
        return Step(loss, shown, samples)

    def answer(self, model: nn.Module, batches: Iterable[Batch]) -> Answers:
        return self.answer_sets(model, batches, None)[0]

    @torch.no_grad()
    def answer_sets(self, model: nn.Module, batches: Iterable[Batch], sets: Tensor | None) -> list[Answers]:
        """:meth:`answer` from each set of modalities, which are encoded once for all of them.

        Args:
            model, batches: see :class:`Learner`.
            sets: ``(sets, modalities)`` bool; None is one set, of all.
        """
        outputs, labels = [], []
        for batch in batches:
            batch = batch.only(*self.modalities)
            where = None if sets is None else sets.to(batch.labels.device)
            logits = model(batch.inputs, batch.lengths, sets=where).logits.float().cpu()
            outputs.append(logits.unsqueeze(0) if sets is None else logits)
            labels.append(batch.labels.cpu())
        return [Answers(one, torch.cat(labels)) for one in torch.cat(outputs, 1)]

    def measure(self, answers: Answers) -> dict[str, float]:
        return quality_of(answers.outputs, answers.labels, self.task)


def hide(batch: Batch, share: float) -> Batch:
    """Hide each modality of each sample with probability ``share``; a sample that would lose all that it has keeps one
    of it at random.

    What is hidden has the length 0 in ``lengths``, ``(B,)`` int64 each; inputs are left as they are.
    """
    if not share:
        return batch
    names = list(batch.lengths)
    device = batch.labels.device
    drawn = torch.rand(len(names), len(batch.labels), device=device)
    kept = drawn >= share
    there = torch.stack([batch.lengths[name] > 0 for name in names])
    kept |= drawn == drawn.where(there, -1.0).amax(0)
    return batch._replace(lengths={name: batch.lengths[name] * kept[row] for row, name in enumerate(names)})


def spoil(batch: Batch, share: float) -> tuple[Batch, dict[str, Tensor]]:
    """Replace a share of each modality's inputs by noise of the same mean and deviation, or by random tokens.

    At most one modality of a sample is spoilt, and nothing says which.

    Returns:
        The batch, and by modality ``(B,)`` bool, True where it was spoilt.
    """
    names = list(batch.lengths)
    size, device = len(batch.labels), batch.labels.device
    if not share:
        return batch, {name: torch.zeros(size, dtype=torch.bool, device=device) for name in names}
    drawn = torch.rand(size, device=device)
    inputs, spoiled = {}, {}
    for row, name in enumerate(names):
        spoiled[name] = (drawn >= row * share) & (drawn < (row + 1) * share)
        inputs[name] = replace_by_noise(batch.inputs[name], spoiled[name])
    return batch._replace(inputs=inputs), spoiled


def replace_by_noise(values: Tensor, rows: Tensor) -> Tensor:
    """``(B, ...)`` with the rows where ``rows`` ``(B,)`` is True replaced."""
    where = rows.view(-1, *(1,) * (values.ndim - 1))
    if values.is_floating_point():
        noise = values.mean() + values.std() * torch.randn_like(values)
    else:
        noise = torch.randint_like(values, 1, max(2, int(values.max()) + 1))
    return noise.where(where, values)
