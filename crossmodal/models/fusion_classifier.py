"""The pipeline of the field as one module: encoders, common space, association, fusion, task head."""

from collections.abc import Mapping
from types import ModuleType
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

import crossmodal
from crossmodal.types import Source

Implementation = Literal["fused", "reference"]


class FusionOutput(NamedTuple):
    """What :class:`FusionClassifier` returns.

    Attributes:
        logits: ``(B, num_classes)``, or ``(sets, B, num_classes)`` when sets of modalities were given.
        mass: ``(B, num_heads, num_queries, modalities)``, the share of attention that each modality got;
            None unless asked for.
    """

    logits: Tensor
    mass: Tensor | None = None


class FusionClassifier(nn.Module):
    """Classifies samples from the modalities that are there.

    Each modality is encoded, ``I' = CNN(I)``, ``T' = RNN(T)``, ``A' = RNN(A)``, and projected into the common
    space, ``X = FC(I', T', A')``. Learned queries then attend over the tokens of all modalities under one
    joint softmax, ``y_i = sum_j w_ij x_j`` (:func:`crossmodal.fuse`), and the y_i are classified.

    Args:
        encoders: by modality, modules that take ``(input, lengths)`` and return an ``EncoderOutput``.
        channels: of the encoders' features.
        num_classes: of the task.
        width: of the common space; a multiple of ``num_heads``.
        num_heads: attention heads.
        num_queries: learned queries.
        implementation: ``"fused"`` for :mod:`crossmodal`, ``"reference"`` for plain torch; same weights,
            same answers.

    Raises:
        ValueError: when ``width`` is not a multiple of ``num_heads``.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        *,
        channels: int,
        num_classes: int,
        width: int = 48,
        num_heads: int = 4,
        num_queries: int = 4,
        implementation: Implementation = "fused",
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width must be a multiple of num_heads, got {width} and {num_heads}")
        self.num_heads = num_heads
        self.implementation = implementation
        self.encoders = nn.ModuleDict(encoders)
        self.to_common = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(channels, width), nn.LayerNorm(width)) for name in encoders}
        )
        self.queries = nn.Parameter(torch.randn(num_queries, width))
        self.to_key = nn.Linear(width, width)
        self.to_value = nn.Linear(width, width)
        self.head = nn.Sequential(
            nn.LayerNorm(num_queries * width),
            nn.Linear(num_queries * width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, num_classes),
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """In the order of the columns of ``mass``."""
        return tuple(self.encoders)

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        lengths: Mapping[str, Tensor],
        *,
        sets: Tensor | None = None,
        return_mass: bool = False,
    ) -> FusionOutput:
        """Classify a batch.

        Args:
            inputs, lengths: see :class:`crossmodal.data.Batch`; a modality left out of both is missing.
            sets: ``(sets, modalities)`` bool: answer once from each of these sets of modalities, encoding
                each modality only once (:func:`crossmodal.models.modality_sets`). Not with ``return_mass``.
            return_mass: also return the share of attention of each modality.
        """
        sources = self._sources(inputs, lengths)
        count = 1 if sets is None else len(sets)
        if sets is not None:
            sources = self._hide_outside_sets(sources, sets)
        query = self._query(batch=next(iter(lengths.values())).shape[0], repeats=count)
        fused = self._operators().fuse(query, sources, return_mass=return_mass)
        # (B, heads, count * queries, head_dim) -> (count, B, queries * width)
        pooled = fused.out.transpose(1, 2).unflatten(1, (count, -1)).flatten(2).transpose(0, 1)
        logits = self.head(pooled)
        return FusionOutput(logits[0] if sets is None else logits, fused.mass)

    @torch.no_grad()
    def attention(self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What each query looked at: by modality ``(B, num_queries, tokens)``, mean over the heads.

        The weights of a sample and query sum to 1 over the tokens of all modalities together.
        """
        sources = self._sources(inputs, lengths)
        query = self._query(batch=next(iter(lengths.values())).shape[0])
        weights = self._operators().associate(query, sources, reduce="heads")
        counts = [0 if source is None else source.key.shape[2] for source in sources]
        return dict(zip(self.modalities, weights.split(counts, dim=2), strict=True))

    def _operators(self) -> ModuleType:
        return crossmodal if self.implementation == "fused" else crossmodal.reference

    def _query(self, *, batch: int, repeats: int = 1) -> Tensor:
        return self._split_heads(self.queries.repeat(repeats, 1).expand(batch, -1, -1))

    def _hide_outside_sets(self, sources: list[Source | None], sets: Tensor) -> list[Source | None]:
        """One group of queries per set; a mask hides from each group the modalities outside its set."""
        groups = sets.repeat_interleave(len(self.queries), dim=0)  # (sets * queries, modalities)
        return [
            source and source._replace(mask=groups[:, column].view(1, 1, -1, 1))
            for column, source in enumerate(sources)
        ]

    def _sources(self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> list[Source | None]:
        sources: list[Source | None] = []
        for name in self.modalities:
            if name not in lengths:
                sources.append(None)
                continue
            encoded = self.encoders[name](inputs[name], lengths[name])
            tokens = self.to_common[name](encoded.features)
            key, value = self.to_key(tokens), self.to_value(tokens)
            sources.append(Source(self._split_heads(key), self._split_heads(value), encoded.lengths))
        return sources

    def _split_heads(self, tokens: Tensor) -> Tensor:
        """``(B, L, width)`` to ``(B, num_heads, L, width / num_heads)``, without a copy."""
        return tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
