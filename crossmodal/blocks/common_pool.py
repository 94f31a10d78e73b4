"""Any number of tokens to a fixed number of features."""

import torch
from torch import Tensor, nn

from crossmodal._validate import check_counts
from crossmodal.blocks.absorbed import absorbed_queries
from crossmodal.blocks.operators import Implementation, check_heads, check_implementation, operators_of
from crossmodal.nn._heads import merge_heads, split_heads


class CommonPool(nn.Module):
    """Learned queries attend over the tokens of one modality.

    Args:
        width: of the tokens; a multiple of ``num_heads``.
        num_heads: attention heads.
        num_queries: how many learned queries.
        implementation: of the operators.

    Attributes:
        out_features: ``num_queries * width``.

    Raises:
        ValueError: when ``width`` is not a multiple of ``num_heads``, or there are no queries, or for an unknown
            ``implementation``.
    """

    def __init__(
        self, width: int, num_heads: int = 4, num_queries: int = 1, implementation: Implementation = "fused"
    ) -> None:
        super().__init__()
        check_heads(width, num_heads)
        check_counts(num_queries=num_queries)
        check_implementation(implementation)
        self.num_heads, self.implementation = num_heads, implementation
        self.out_features = num_queries * width
        self.queries = nn.Parameter(torch.randn(num_queries, width))
        self.to_key = nn.Linear(width, width)
        self.to_value = nn.Linear(width, width)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """``(B, L, width)`` and ``(B,)`` to ``(B, out_features)``; zero for a sample of length 0."""
        attention = operators_of(self.implementation).attention
        absorbed = absorbed_queries(self)
        if absorbed is not None and absorbed.pay(tokens):
            rows = tokens.unsqueeze(1)
            pooled = attention(absorbed.query(len(tokens)), rows, rows, key_lengths=lengths, scale=absorbed.scale)
            return merge_heads(absorbed.project(pooled, (lengths > 0).view(-1, 1, 1))).flatten(1)
        query, key, value = (
            split_heads(part, self.num_heads)
            for part in (self.queries.expand(len(tokens), -1, -1), self.to_key(tokens), self.to_value(tokens))
        )
        return merge_heads(attention(query, key, value, key_lengths=lengths)).flatten(1)
