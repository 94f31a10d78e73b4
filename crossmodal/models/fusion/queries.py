"""Learned queries attend over the tokens of all modalities under one joint softmax."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crossmodal.blocks.absorbed import absorb_queries, absorbs, project_pooled, scale_of
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
        fuse = operators_of(self.implementation).fuse
        if not self._absorbs(tokens):
            query = self._query(len(first_batch(tokens)))
            fused = fuse(query, self._sources(tokens, biases), return_mass=return_mass)
            return Fused(merge_heads(fused.out).flatten(1), fused.mass)
        sources = [one and _as_source(one, bias) for one, bias in zip(tokens, biases, strict=True)]
        fused = fuse(self._absorbed_query(tokens), sources, scale=self._scale, return_mass=return_mass)
        there = torch.stack([one.lengths > 0 for one in tokens if one is not None]).any(0)
        out = merge_heads(project_pooled(fused.out, self.to_value, self.num_heads)).flatten(1) * there.unsqueeze(1)
        mass = fused.mass
        return Fused(out, None if mass is None else mass.squeeze(1).unflatten(1, (self.num_heads, -1)))

    def over_sets(self, tokens: Sequence[EncoderOutput | None], biases: Biases, sets: Tensor) -> Tensor:
        if self._absorbs(tokens):
            return self._combined(tokens, biases, sets)
        # One call for all sets: each has its own copy of the queries, from which a mask hides the other modalities.
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

    def _combined(self, tokens: Sequence[EncoderOutput | None], biases: Biases, sets: Tensor) -> Tensor:
        """Each modality is attended to once, whatever the sets: the softmax over all tokens of a set is that over its
        modalities' tokens, weighted by a softmax of their logarithms of sums of exponentials."""
        query = self._absorbed_query(tokens)
        pooled, sums, kept = [], [], []
        for column, (one, bias) in enumerate(zip(tokens, biases, strict=True)):
            if one is None:
                continue
            rows = one.features.unsqueeze(1)
            out, lse = operators_of(self.implementation).attention(
                query, rows, rows, key_lengths=one.lengths, scale=self._scale, return_lse=True
            )
            pooled.append(project_pooled(out, self.to_value, self.num_heads))
            sums.append(lse.view(pooled[-1].shape[:3]) + (0.0 if bias is None else bias.view(-1, 1, 1)))
            kept.append(column)
        hidden = ~sets[:, kept].view(len(sets), 1, 1, 1, -1)
        scores = torch.stack(sums, 3).masked_fill(hidden, -torch.inf)  # (sets, B, heads, queries, modalities)
        # Where no modality is there, the largest is -inf, and what is subtracted must be finite.
        weights = (scores - scores.detach().amax(4, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)).exp()
        total = weights.sum(4, keepdim=True)
        weights = weights / total.where(total > 0, 1.0)
        values = torch.stack(pooled, 3)  # (B, heads, queries, modalities, head_dim)
        out = (weights.unsqueeze(5) * values).sum(4)  # (sets, B, heads, queries, head_dim)
        return out.transpose(2, 3).flatten(2)

    def attention(self, tokens: Sequence[EncoderOutput | None], biases: Biases) -> list[Tensor]:
        sources = self._sources(tokens, biases)
        weights = operators_of(self.implementation).associate(
            self._query(len(first_batch(tokens))), sources, reduce="heads"
        )
        return list(weights.split([0 if source is None else source.key.shape[2] for source in sources], dim=2))

    def _absorbs(self, tokens: Sequence[EncoderOutput | None]) -> bool:
        return absorbs(
            first_batch(tokens), self.queries, self.num_heads, self.implementation, self.to_key, self.to_value
        )

    def _absorbed_query(self, tokens: Sequence[EncoderOutput | None]) -> Tensor:
        return absorb_queries(self.queries, self.to_key, self.num_heads, len(first_batch(tokens)))

    @property
    def _scale(self) -> float:
        return scale_of(self.queries, self.num_heads)

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


def _as_source(tokens: EncoderOutput, bias: Tensor | None) -> Source:
    """Tokens as they are for keys and for values."""
    rows = tokens.features.unsqueeze(1)
    return Source(rows, rows, tokens.lengths, bias=None if bias is None else bias.view(-1, 1, 1, 1))
