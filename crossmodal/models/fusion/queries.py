"""Learned queries attend over the tokens of all modalities under one joint softmax."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import crossmodal
from crossmodal.blocks.absorbed import absorbed_queries
from crossmodal.blocks.operators import check_heads, operators_of
from crossmodal.encoders.output import EncoderOutput
from crossmodal.models.fusion.base import Biases, Form, Fused, Fusion, first_batch
from crossmodal.nn._absorbed import AbsorbedQueries
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
        absorbed, batch = self._absorbed(tokens), len(first_batch(tokens))
        fuse = operators_of(self.implementation).fuse
        if absorbed is None:
            fused = fuse(self._query(batch), self._sources(tokens, biases), return_mass=return_mass)
            return Fused(merge_heads(fused.out).flatten(1), fused.mass)
        sources = [one and _as_source(one, bias) for one, bias in zip(tokens, biases, strict=True)]
        fused = fuse(absorbed.query(batch), sources, scale=absorbed.scale, return_lse=True, return_mass=return_mass)
        out = merge_heads(absorbed.project(fused.out, absorbed.by_head(fused.lse) > -torch.inf)).flatten(1)
        return Fused(out, absorbed.by_head(fused.mass) if return_mass else None)

    def over_sets(self, tokens: Sequence[EncoderOutput | None], biases: Biases, sets: Tensor) -> Tensor:
        absorbed = self._absorbed(tokens)
        if absorbed is not None:
            return _over_sets(absorbed, tokens, biases, sets)
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

    def attention(self, tokens: Sequence[EncoderOutput | None], biases: Biases) -> list[Tensor]:
        sources = self._sources(tokens, biases)
        weights = operators_of(self.implementation).associate(
            self._query(len(first_batch(tokens))), sources, reduce="heads"
        )
        return list(weights.split([0 if source is None else source.key.shape[2] for source in sources], dim=2))

    def _absorbed(self, tokens: Sequence[EncoderOutput | None]) -> AbsorbedQueries | None:
        """Where they pay for all modalities."""
        absorbed = absorbed_queries(self)
        if absorbed is None or not all(absorbed.pay(one.features) for one in tokens if one is not None):
            return None
        return absorbed

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


def _over_sets(
    absorbed: AbsorbedQueries, tokens: Sequence[EncoderOutput | None], biases: Biases, sets: Tensor
) -> Tensor:
    """Attends to each modality once, whatever the sets: a softmax over the tokens of several modalities is one over
    those of each, weighted by a softmax over their log-sum-exps."""
    query = absorbed.query(len(first_batch(tokens)))
    outs, sums = [], []
    for one, bias in zip(tokens, biases, strict=True):
        if one is None:
            continue
        rows = one.features.unsqueeze(1)
        out, lse = crossmodal.attention(
            query, rows, rows, key_lengths=one.lengths, scale=absorbed.scale, return_lse=True
        )
        outs.append(absorbed.project(out))  # the bias too where nothing is there: its weight is 0
        lse = absorbed.by_head(lse)
        sums.append(lse if bias is None else lse + bias.view(-1, 1, 1))
    kept = sets[:, [one is not None for one in tokens]].view(len(sets), 1, 1, 1, -1)
    weights = _softmax_or_zero(torch.stack(sums, 3).where(kept, -torch.inf))  # (sets, B, heads, queries, modalities)
    values = torch.stack(outs, 3)  # (B, heads, queries, modalities, head_dim)
    # Of a modality that is hidden nothing is read, be it NaN.
    out = (weights.to(values.dtype).unsqueeze(5) * values.where(kept.unsqueeze(5), 0.0)).sum(4)
    return out.transpose(2, 3).flatten(2)


def _as_source(tokens: EncoderOutput, bias: Tensor | None) -> Source:
    """Tokens as they are for keys and for values."""
    rows = tokens.features.unsqueeze(1)
    return Source(rows, rows, tokens.lengths, bias=None if bias is None else bias.view(-1, 1, 1, 1))


def _softmax_or_zero(scores: Tensor) -> Tensor:
    """Over the last dimension; 0 where all scores are -inf, in gradients too."""
    finite = scores.clamp(min=torch.finfo(scores.dtype).min)
    return finite.softmax(-1) * (scores > -torch.inf)
