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

from crossmodal.nn._hooks import are_hooked
from crossmodal.nn.linear import Linear
from crossmodal.ops._plain import are_plain_on_cpu

_WORTHWHILE = 1_000_000  # multiply-adds of projections below which they take less than what comes in their place


class Projection(NamedTuple):
    """A linear layer that is nothing but its weights.

    Attributes:
        weight: ``(width, features)``.
        bias: ``(width,)`` or None.
    """

    weight: Tensor
    bias: Tensor | None


class AbsorbedQueries(NamedTuple):
    """Learned queries that attend over tokens as they are, all heads side by side as queries of one head.

    Attributes:
        queries: ``(queries, width)``.
        num_heads: attention heads.
        key, value: the projections of tokens.
    """

    queries: Tensor
    num_heads: int
    key: Projection
    value: Projection

    def pay(self, tokens: Tensor) -> bool:
        """Whether they take at most half of the multiply-adds that projecting ``(B, L, features)`` would.

        Products of heads are as wide as the tokens here, so that many queries would take more. Only on CPU, where that
        is measured, and for tensors that nothing compiles, transforms or casts.
        """
        (queries, width), (batch, length, features) = self.queries.shape, tokens.shape
        if 2 * length * self.num_heads * queries + queries * width > length * width:
            return False
        if 2 * batch * length * features * width < _WORTHWHILE or features != self.key.weight.shape[1]:
            return False
        return are_plain_on_cpu(tokens, self.queries, self.key.weight, self.value.weight)

    def query(self, batch: int) -> Tensor:
        """``(batch, 1, queries * num_heads, features)``, of scores that are to be multiplied by ``scale``."""
        weight = self.key.weight.unflatten(0, (self.num_heads, -1))
        absorbed = torch.bmm(self.queries.unflatten(1, (self.num_heads, -1)).transpose(0, 1), weight)
        absorbed = absorbed.transpose(0, 1).flatten(0, 1)
        if self.key.bias is not None:
            # Its gradient is zero, which is not none: processes that train together wait for it.
            absorbed = absorbed + (0.0 * self.key.bias).sum()
        return absorbed.expand(batch, 1, -1, -1)

    @property
    def scale(self) -> float:
        """Of heads that share the width."""
        return float((self.queries.shape[1] // self.num_heads) ** -0.5)

    def by_head(self, rows: Tensor) -> Tensor:
        """``(batch, 1, queries * num_heads, ...)`` to ``(batch, num_heads, queries, ...)``, a view."""
        return rows.squeeze(1).unflatten(1, (-1, self.num_heads)).transpose(1, 2)

    def project(self, pooled: Tensor, seen: Tensor | None = None) -> Tensor:
        """``(batch, 1, queries * num_heads, features)`` to ``(batch, num_heads, queries, head_dim)``.

        Args:
            pooled: what the queries found.
            seen: broadcast to ``(batch, num_heads, queries)``, False where there was nothing to be found, whose
                projection is 0 and not the bias; None where there was something everywhere.
        """
        # Heads vary fastest among the queries, so that those of one head are a matrix where they stand.
        rows = pooled.flatten(0, 2).unflatten(0, (-1, self.num_heads)).transpose(0, 1)
        weight = self.value.weight.unflatten(0, (self.num_heads, -1)).mT
        bias = self.value.bias
        if bias is None or seen is not None:
            out = torch.bmm(rows, weight)
        else:
            out = torch.baddbmm(bias.view(self.num_heads, 1, -1), rows, weight)
        out = out.unflatten(1, (len(pooled), len(self.queries))).transpose(0, 1)
        if bias is None or seen is None:
            return out
        return out + bias.view(self.num_heads, 1, -1).where(seen.unsqueeze(3), 0.0)


def are_mere_weights(*layers: nn.Module) -> bool:
    """Whether linear layers are nothing but their weights: no hook, no other class, nothing that makes the weights."""
    plain = all(type(layer) in (nn.Linear, Linear) and type(layer.weight) is nn.Parameter for layer in layers)
    return plain and not are_hooked(*layers)
