"""Tokens of one modality attend over the tokens of any number of modalities, under one softmax."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crossmodal._validate import check_not_negative
from crossmodal.blocks.operators import Implementation, Tokens, check_heads, check_implementation, operators_of
from crossmodal.nn._heads import merge_heads, split_heads
from crossmodal.types import Source


class CommonAttention(nn.Module):
    """Projections around :func:`crossmodal.fuse`.

    Args:
        width: of all tokens; a multiple of ``num_heads``.
        num_heads: attention heads.
        project_values: False attends over the tokens themselves, ``y_i = sum_j w_ij x_j``, and leaves the projection
            after it out too.
        likeness: above 0, queries and keys begin as one projection whose scores have about this standard deviation: a
            token begins by attending to those that are like it. 0 begins with two, and scores of deviation 1: it
            attends to nearly all alike, and finds late what it should look for.
        implementation: of the operators.

    Raises:
        ValueError: when ``width`` is not a multiple of ``num_heads``, ``likeness`` is below 0 or not finite, or for an
            unknown ``implementation``.
    """

    def __init__(
        self,
        width: int,
        num_heads: int = 4,
        *,
        project_values: bool = True,
        likeness: float = 0.0,
        implementation: Implementation = "fused",
    ) -> None:
        super().__init__()
        check_heads(width, num_heads)
        check_not_negative("likeness", likeness)
        check_implementation(implementation)
        self.num_heads, self.implementation = num_heads, implementation
        self.to_query = nn.Linear(width, width)
        self.to_key = nn.Linear(width, width)
        self.to_value = nn.Linear(width, width) if project_values else nn.Identity()
        self.to_out = nn.Linear(width, width, bias=False) if project_values else nn.Identity()
        # Glorot's rule gives scores of deviation 1, Linear's own start a third of it.
        nn.init.xavier_uniform_(self.to_query.weight, gain=likeness**0.5 if likeness else 1.0)
        if likeness:
            self.to_key.load_state_dict(self.to_query.state_dict())
        else:
            nn.init.xavier_uniform_(self.to_key.weight)

    def forward(
        self,
        query: Tensor,
        sources: Sequence[Tokens | None],
        *,
        biases: Sequence[Tensor | None] | None = None,
        query_position: Tensor | None = None,
        positions: Sequence[Tensor | None] | None = None,
        return_mass: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """``(B, Lq, width)`` over the tokens of the sources to ``(B, Lq, width)`` and the mass or None.

        Args:
            query: ``(B, Lq, width)``.
            sources: ``(B, L, width)`` and ``(B,)`` lengths, such as an ``EncoderOutput``; None for a modality that
                is not there.
            biases: by source ``(B,)``, added to the scores of all its keys; see :class:`crossmodal.Source`.
            query_position, positions: where queries, and by source tokens, stand: ``(Lq, width)`` and ``(L, width)``,
                added to what queries and keys are made of. Values do not have it: where a token stands is asked for,
                but not told (Carion et al., arXiv 2005.12872).
            return_mass: also return ``(B, num_heads, Lq, sources)``.
        """
        found = self._sources(sources, biases, positions)
        return self._attend(self._query(query, query_position), found, None, return_mass)

    def attend_all(
        self,
        queries: Sequence[Tokens | None],
        sources: Sequence[Tokens | None],
        *,
        biases: Sequence[Tensor | None] | None = None,
        return_mass: bool = False,
    ) -> list[tuple[Tensor, Tensor | None] | None]:
        """What :meth:`forward` gives for each of several ``(B, Lq, width)`` and their ``(B,)`` lengths over the same
        sources, whose keys and values are projected once: 0 beyond a length, None for a query that is None."""
        found = self._sources(sources, biases)
        return [
            None if query is None else self._attend(self._query(query[0]), found, query[1], return_mass)
            for query in queries
        ]

    @torch.no_grad()
    def weights(
        self, query: Tensor, sources: Sequence[Tokens | None], *, biases: Sequence[Tensor | None] | None = None
    ) -> list[Tensor]:
        """By source ``(B, Lq, L)``, mean over the heads; together they sum to 1. Empty for a source that is None."""
        found = self._sources(sources, biases)
        weights = operators_of(self.implementation).associate(self._query(query), found, reduce="heads")
        return list(weights.split([0 if source is None else source.key.shape[2] for source in found], dim=2))

    def _attend(
        self, query: Tensor, sources: Sequence[Source | None], query_lengths: Tensor | None, return_mass: bool
    ) -> tuple[Tensor, Tensor | None]:
        fused = operators_of(self.implementation).fuse(
            query, sources, query_lengths=query_lengths, return_mass=return_mass
        )
        return self.to_out(merge_heads(fused.out)), fused.mass

    def _query(self, query: Tensor, position: Tensor | None = None) -> Tensor:
        return split_heads(self.to_query(_placed(query, position)), self.num_heads)

    def _sources(
        self,
        sources: Sequence[Tokens | None],
        biases: Sequence[Tensor | None] | None,
        positions: Sequence[Tensor | None] | None = None,
    ) -> list[Source | None]:
        found: list[Source | None] = []
        biases, positions = ([None] * len(sources) if one is None else one for one in (biases, positions))
        for source, bias, position in zip(sources, biases, positions, strict=True):
            if source is None:
                found.append(None)
                continue
            tokens, lengths = source
            key = split_heads(self.to_key(_placed(tokens, position)), self.num_heads)
            value = split_heads(self.to_value(tokens), self.num_heads)
            found.append(Source(key, value, lengths, bias=None if bias is None else bias.view(-1, 1, 1, 1)))
        return found


def _placed(tokens: Tensor, position: Tensor | None) -> Tensor:
    return tokens if position is None else tokens + position
