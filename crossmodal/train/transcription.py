"""Training and evaluation of models that spell."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from crossmodal.data.batch import Batch
from crossmodal.models.captioner import Captioner
from crossmodal.models.ctc import error_rate
from crossmodal.models.transcriber import Transcriber
from crossmodal.train.learner import Answers, Learner, Step, hide
from crossmodal.train.objective import auxiliary_loss


class TranscriptionLearner(Learner):
    """For :class:`crossmodal.models.Transcriber` and :class:`crossmodal.models.Captioner`.

    Args:
        modalities: in the order of the model.
        modality_dropout: share of the inputs of each modality but ``speech`` hidden at random.
        auxiliary_weight: of the losses of auxiliary questions.
        speech: the modality that always stays.
    """

    def __init__(
        self,
        modalities: tuple[str, ...],
        *,
        modality_dropout: float = 0.0,
        auxiliary_weight: float = 1.0,
        speech: str = "audio",
    ) -> None:
        self.modalities, self.modality_dropout, self.speech = modalities, modality_dropout, speech
        self.auxiliary_weight = auxiliary_weight

    def step(self, model: nn.Module, batch: Batch) -> Step:
        batch = batch.only(*self.modalities)
        kept = batch.lengths.get(self.speech)
        batch = hide(batch, self.modality_dropout)
        if kept is not None:
            batch.lengths[self.speech] = kept
        output = model(batch.inputs, batch.lengths, batch.labels)
        loss = _bare(model).loss(output, batch.labels)
        shown = {"loss": loss.detach() * len(batch.labels)}
        present = {name: rows > 0 for name, rows in batch.lengths.items()}
        loss = loss + self.auxiliary_weight * auxiliary_loss(output.auxiliary, batch.auxiliary, present)
        return Step(loss, shown, len(batch.labels))

    @torch.no_grad()
    def answer(self, model: nn.Module, batches: Iterable[Batch]) -> Answers:
        said: list[list[int]] = []
        labels = []
        for batch in batches:
            batch = batch.only(*self.modalities)
            said += _bare(model).transcribe(batch.inputs, batch.lengths)
            labels.append(batch.labels.cpu())
        longest = max((len(row) for row in said), default=0)
        outputs = torch.full((len(said), max(longest, 1)), -1)
        for row, symbols in enumerate(said):
            outputs[row, : len(symbols)] = torch.tensor(symbols, dtype=torch.int64)
        return Answers(outputs, torch.cat(labels))

    def measure(self, answers: Answers) -> dict[str, float]:
        """``loss`` is the character error rate, ``accuracy`` the share of texts without an error."""
        said, true = _rows(answers.outputs), _rows(answers.labels)
        right = sum(a == b for a, b in zip(said, true, strict=True))
        return {"loss": error_rate(said, true), "accuracy": right / len(true)}


def _rows(symbols: Tensor) -> list[list[int]]:
    return [[symbol for symbol in row if symbol > 0] for row in symbols.tolist()]


def _bare(model: nn.Module) -> Transcriber | Captioner:
    found = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    assert isinstance(found, Transcriber | Captioner)
    return found
