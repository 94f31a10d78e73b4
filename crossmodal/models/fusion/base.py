"""What every form of fusion takes and returns."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from crossmodal._validate import check_counts
from crossmodal.blocks.operators import Implementation, check_implementation
from crossmodal.encoders.output import EncoderOutput

Biases = Sequence[Tensor | None]


class Form(NamedTuple):
    """The size of a fusion.

    Attributes:
        modalities: how many.
        width: of the common space; a multiple of ``num_heads``.
        num_heads: attention heads.
        num_queries: learned queries, or bottleneck tokens, where the form has some.
        layers: how many times tokens attend, where that can be more than once.
        rank: of the tensor of a low-rank fusion.
        likeness: of the form whose tokens ask, ``cross``; see :class:`crossmodal.blocks.CommonAttention`.
        implementation: of the operators.
    """

    modalities: int
    width: int = 48
    num_heads: int = 4
    num_queries: int = 4
    layers: int = 1
    rank: int = 8
    likeness: float = 0.0
    implementation: Implementation = "fused"


class Fused(NamedTuple):
    """One vector per sample.

    Attributes:
        features: ``(B, out_features)``, or ``(sets, B, out_features)``.
        mass: ``(B, num_heads, queries, modalities)``, the share of attention of each modality; None where the form has
            no weights, or where it was not asked for.
    """

    features: Tensor
    mass: Tensor | None = None


class Fusion(nn.Module):
    """Tokens of several modalities in the common space to one vector per sample.

    A modality that is None, or has length 0 for a sample, has no influence on that sample.

    Args:
        form: its size.

    Attributes:
        out_features: of the vector.
        weighs: whether the form gives the modalities weights, which a bias can move.

    Raises:
        ValueError: when a number of the form is not positive, or for an unknown ``implementation``.
    """

    out_features: int
    weighs = True

    def __init__(self, form: Form) -> None:
        super().__init__()
        check_counts(
            modalities=form.modalities,
            width=form.width,
            num_heads=form.num_heads,
            num_queries=form.num_queries,
            layers=form.layers,
            rank=form.rank,
        )
        check_implementation(form.implementation)
        self.width, self.implementation = form.width, form.implementation

    def forward(self, tokens: Sequence[EncoderOutput | None], biases: Biases, *, return_mass: bool = False) -> Fused:
        """Fuse what is there.

        Args:
            tokens: by modality, features ``(B, L, width)``.
            biases: by modality ``(B,)``, added to the scores of all its tokens; ignored where ``weighs`` is False.
            return_mass: also return the mass.
        """
        raise NotImplementedError

    def over_sets(self, tokens: Sequence[EncoderOutput | None], biases: Biases, sets: Tensor) -> Tensor:
        """``(sets, B, out_features)``: once for each row of ``sets`` ``(sets, modalities)`` bool.

        Weights that no row needs get no gradient; a row with every modality needs all.
        """
        return torch.stack([self(_only(tokens, kept), biases).features for kept in sets.tolist()])

    def attention(self, tokens: Sequence[EncoderOutput | None], biases: Biases) -> list[Tensor]:
        """By modality ``(B, queries, L)``: what was looked at; for each query all of it together sums to 1.

        Raises:
            NotImplementedError: for a form without weights.
        """
        raise NotImplementedError(f"{type(self).__name__} has no attention over tokens")


def _only(tokens: Sequence[EncoderOutput | None], kept: Sequence[bool]) -> list[EncoderOutput | None]:
    """The others are left out, and cost nothing; where no kept one is there, they stay with length 0."""
    if any(one is not None and keep for one, keep in zip(tokens, kept, strict=True)):
        return [one if keep else None for one, keep in zip(tokens, kept, strict=True)]
    return [one and one._replace(lengths=torch.zeros_like(one.lengths)) for one in tokens]


def first_batch(tokens: Sequence[EncoderOutput | None]) -> Tensor:
    """Features of some modality that is there: for the batch size, dtype and device.

    Raises:
        ValueError: when no modality is there at all.
    """
    for one in tokens:
        if one is not None:
            return one.features
    raise ValueError("inputs must hold at least one modality, got none")


def mean_over_real(values: Tensor, lengths: Tensor) -> Tensor:
    """``(B, L, ...)`` to ``(B, ...)``, the mean over the first ``lengths`` rows; they must be zero beyond."""
    return values.sum(1) / lengths.clamp(min=1).view(-1, *(1,) * (values.ndim - 2))
