"""Pooling by a few learned queries without projecting the tokens.

The projections of keys and values are linear, and a softmax does not notice what is added to all scores of a query::

    q . (W_k x_j + b_k) = (W_k^T q) . x_j + what is the same for every j
    sum_j w_ij (W_v x_j + b_v) = W_v (sum_j w_ij x_j) + b_v

so the queries are projected once for the whole batch, the heads attend over the tokens themselves,
y_i = sum_j w_ij x_j, and only these few are projected. DeepSeek-V2 (arXiv 2405.04434, section 2.1.2) absorbs its
projections in the same way.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from crossmodal.blocks.operators import Implementation
from crossmodal.nn._hooks import are_hooked
from crossmodal.ops._plain import nothing_transforms


class AbsorbedQueries(NamedTuple):
    """Learned queries that attend over tokens as they are, all heads side by side as queries of one head.

    Attributes:
        queries: ``(queries, width)``.
        to_key, to_value: the projections of tokens, ``width`` to ``width``, with a bias.
        num_heads: attention heads.
    """

    queries: Tensor
    to_key: nn.Module
    to_value: nn.Module
    num_heads: int

    def stand_for(self, tokens: Tensor, implementation: Implementation) -> bool:
        """Whether they pay, which is measured on CPU alone, and the projections are nothing but their weights.

        Products of heads are as wide as the tokens here: with more queries, counted in all heads, than the tokens have
        channels, these would cost more than the projections.
        """
        if implementation != "fused" or self.num_heads * len(self.queries) > self.queries.shape[1]:
            return False
        layers = self.to_key, self.to_value
        if not all(type(layer) is nn.Linear and type(layer.weight) is nn.Parameter for layer in layers):
            return False
        if not tokens.is_cpu or tokens.dtype != self.queries.dtype:
            return False
        return nothing_transforms("cpu") and not are_hooked(*layers)

    def query(self, batch: int) -> Tensor:
        """``(batch, 1, num_heads * queries, width)``; scores are to be multiplied by ``scale``."""
        weight, bias = _of(self.to_key)
        absorbed = torch.bmm(self._by_head(self.queries), weight.unflatten(0, (self.num_heads, -1))).flatten(0, 1)
        # The gradient of the bias is zero, which is not none: processes that train together wait for it.
        return (absorbed + 0.0 * bias.sum()).expand(batch, 1, -1, -1)

    @property
    def scale(self) -> float:
        """Of the heads that share the width."""
        return float((self.queries.shape[1] // self.num_heads) ** -0.5)

    def project(self, pooled: Tensor) -> Tensor:
        """``(batch, 1, num_heads * queries, width)`` to ``(batch, num_heads, queries, head_dim)``.

        Where nothing was attended to, zeros become the bias.
        """
        weight, bias = _of(self.to_value)
        rows = (
            pooled.squeeze(1).unflatten(1, (self.num_heads, -1)).transpose(0, 1)
        )  # (num_heads, batch, queries, width)
        by_head = weight.unflatten(0, (self.num_heads, -1)).mT
        projected = torch.baddbmm(bias.view(self.num_heads, 1, -1), rows.flatten(1, 2), by_head)
        return projected.unflatten(1, rows.shape[1:3]).transpose(0, 1)

    def _by_head(self, rows: Tensor) -> Tensor:
        """``(queries, width)`` to ``(num_heads, queries, head_dim)``."""
        return rows.unflatten(1, (self.num_heads, -1)).transpose(0, 1)


def _of(layer: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(layer, nn.Linear)
    return layer.weight, layer.bias
