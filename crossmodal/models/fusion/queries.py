"""Learned queries attend over the tokens of all modalities under one joint softmax."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crossmodal.blocks.operators import check_heads, operators_of
from crossmodal.encoders.output import EncoderOutput
from crossmodal.models.fusion.base import Biases, Form, Fused, Fusion, first_batch
from crossmodal.nn._heads import merge_heads, split_heads
from crossmodal.types import Source


class QueryFusion(Fusion):
    """``y_i = sum_j w_ij x_j`` for learned queries i and the tokens j of all modalities; the y_i side by side."""

    def __init__(self, form: Form) -> None:
        super().__init__(form)
        check_heads(form.width, form.num_heads)
        self.num_heads = form.num_heads
        self.out_features = form.num_queries * form.width
        self.queries = nn.Parameter(torch.randn(form.num_queries, form.width))
        self.to_key = nn.Linear(form.width, form.width)
        self.to_value = nn.Linear(form.width, form.width)

    def forward(self, tokens: Sequence[EncoderOutput | None], biases: Biases, *, return_mass: bool = False) -> Fused:
        query = self._query(len(first_batch(tokens)))
        fused = operators_of(self.implementation).fuse(query, self._sources(tokens, biases), return_mass=return_mass)
        return Fused(merge_heads(fused.out).flatten(1), fused.mass)

    def over_sets(self, tokens: Sequence[EncoderOutput | None], biases: Biases, sets: Tensor) -> Tensor:
        """One call for all sets: each has its own copy of the queries, from which a mask hides the other modalities."""
        sources = self._sources(tokens, biases)
        groups = sets.repeat_interleave(len(self.queries), dim=0)  # (sets * queries, modalities)
        sources = [
            source and source._replace(mask=groups[:, column].view(1, 1, -1, 1))
            for column, source in enumerate(sources)
        ]
        query = self._query(len(first_batch(tokens)), repeats=len(sets))
        out = operators_of(self.implementation).fuse(query, sources).out
        # (B, heads, sets * queries, head_dim) -> (sets, B, queries * width)
        return out.transpose(1, 2).unflatten(1, (len(sets), -1)).flatten(2).transpose(0, 1)

    def attention(self, tokens: Sequence[EncoderOutput | None], biases: Biases) -> list[Tensor]:
        sources = self._sources(tokens, biases)
        weights = operators_of(self.implementation).associate(
            self._query(len(first_batch(tokens))), sources, reduce="heads"
        )
        return list(weights.split([0 if source is None else source.key.shape[2] for source in sources], dim=2))

    def _query(self, batch: int, repeats: int = 1) -> Tensor:
        return split_heads(self.queries.repeat(repeats, 1).expand(batch, -1, -1), self.num_heads)

    def _sources(self, tokens: Sequence[EncoderOutput | None], biases: Biases) -> list[Source | None]:
        sources: list[Source | None] = []
        for one, bias in zip(tokens, biases, strict=True):
            if one is None:
                sources.append(None)
                continue
            key, value = (
                split_heads(project(one.features), self.num_heads) for project in (self.to_key, self.to_value)
            )
            sources.append(Source(key, value, one.lengths, bias=None if bias is None else bias.view(-1, 1, 1, 1)))
        return sources
