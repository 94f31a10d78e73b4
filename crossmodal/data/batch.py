"""A batch of samples of which any modality may be missing."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Samples as an encoder wants them: padded raw input and how much of it is real.

    Attributes:
        inputs: by modality, ``(B, ...)`` padded; what lies beyond a sample's length is never read
            as content.
        lengths: by modality, ``(B,)`` int64, in the units of the input: words of a sentence,
            samples of a waveform, images of an image (0 or 1). 0 says that the modality is
            missing for that sample.
        labels: ``(B,)`` int64 class indices, or ``(B, outputs)`` float32 (see :class:`crossmodal.data.sample.Sample`).
        texts: B lists of words as they stood before they were numbered, for people to read; None
            when there is no text.
        names: B names of the samples, where they have some.
        auxiliary: by modality, ``(B,)`` or ``(B, cells)`` int64 class indices that this modality alone has to tell.
    """

    inputs: dict[str, Tensor]
    lengths: dict[str, Tensor]
    labels: Tensor
    texts: list[list[str]] | None = None
    names: list[str] | None = None
    auxiliary: Mapping[str, Tensor] = MappingProxyType({})

    def without(self, modality: str) -> "Batch":
        """The same samples with one modality missing from all of them.

        Raises:
            KeyError: for a modality that the batch does not have.
        """
        if modality not in self.lengths:
            raise KeyError(f"modality must be one of {sorted(self.lengths)}, got {modality!r}")
        gone = torch.zeros_like(self.lengths[modality])
        return self._replace(lengths={**self.lengths, modality: gone})

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device; copies from pinned memory run beside computation."""

        def moved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}

        return self._replace(
            inputs=moved(self.inputs),
            lengths=moved(self.lengths),
            labels=self.labels.to(device, non_blocking=True),
            auxiliary=moved(self.auxiliary),
        )

    def only(self, *modalities: str) -> "Batch":
        """The same samples with nothing but the named modalities in ``inputs`` and ``lengths``."""
        return self._replace(
            inputs={name: self.inputs[name] for name in modalities},
            lengths={name: self.lengths[name] for name in modalities},
        )


def pad(rows: list[Tensor], *, value: float = 0) -> tuple[Tensor, Tensor]:
    """Stack ragged 1-D tensors: ``(B, longest)`` filled up with ``value``, and ``(B,)`` lengths."""
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
    return padded, lengths
