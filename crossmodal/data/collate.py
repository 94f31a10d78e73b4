"""Samples to a batch: ragged inputs padded to the longest of the batch and no further."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from crossmodal.data.batch import Batch, pad
from crossmodal.data.sample import Modality, Sample


class Collate:
    """Makes a :class:`Batch` of samples; a modality that a sample lacks gets length 0 there.

    Args:
        modalities: what to put into the batch; others that a sample has are left out.
    """

    def __init__(self, modalities: Mapping[str, Modality]) -> None:
        self.modalities = dict(modalities)

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """The batch.

        Raises:
            ValueError: for no samples.
        """
        if not samples:
            raise ValueError("samples must hold at least one, got none")
        inputs: dict[str, Tensor] = {}
        lengths: dict[str, Tensor] = {}
        for name, modality in self.modalities.items():
            rows = [sample.inputs.get(name) for sample in samples]
            stack = _stack_images if modality.kind == "image" else _stack_sequences
            inputs[name], lengths[name] = stack(rows, modality)
        auxiliary = {
            name: torch.stack([sample.auxiliary[name] for sample in samples])
            for name in self.modalities
            if all(name in sample.auxiliary for sample in samples)
        }
        labels = torch.stack([sample.label for sample in samples])
        return Batch(inputs, lengths, labels, names=[sample.name for sample in samples], auxiliary=auxiliary)


def _stack_images(rows: Sequence[Tensor | None], modality: Modality) -> tuple[Tensor, Tensor]:
    """``(B, channels, height, width)`` and ``(B,)``, 1 = there."""
    assert modality.size is not None
    blank = torch.zeros(modality.size)
    there = torch.tensor([int(row is not None) for row in rows])
    return torch.stack([blank if row is None else row for row in rows]), there


def _stack_sequences(rows: Sequence[Tensor | None], modality: Modality) -> tuple[Tensor, Tensor]:
    """``(B, longest)`` and ``(B,)``; at least one column, which is padding where nobody has any."""
    empty = torch.zeros(0, dtype=torch.int64 if modality.kind == "text" else torch.float32)
    padded, lengths = pad([empty if row is None else row for row in rows])
    return (padded if padded.shape[1] else padded.new_zeros(len(rows), 1)), lengths
