"""Pooling by a few learned queries without projecting the tokens.

The projections of keys and values are linear, and a softmax does not notice what is added to all scores of a query::

    q . (W_k x_j + b_k) = (W_k^T q) . x_j + what is the same for every j
    sum_j w_ij (W_v x_j + b_v) = W_v (sum_j w_ij x_j) + b_v

so the queries are projected once for the whole batch, all heads attend over the tokens themselves, y_i = sum_j w_ij x_j,
and only these few are projected. DeepSeek-V2 (arXiv 2405.04434, section 2.1.2) absorbs its projections in the same way.
Products of heads are then as wide as the tokens: it pays where there are no more queries, counted in all heads, than
the tokens have channels.
"""

import torch
from torch import Tensor, nn

from crossmodal.blocks.operators import Implementation
from crossmodal.nn._hooks import are_hooked
from crossmodal.ops._plain import nothing_transforms


def absorbs(tokens: Tensor, queries: Tensor, num_heads: int, implementation: Implementation, *layers: nn.Module) -> bool:
    """Whether it pays, which is measured on CPU alone, and the layers are nothing but their weights."""
    if implementation != "fused" or num_heads * len(queries) > queries.shape[1]:
        return False
    if not (tokens.is_cpu and tokens.dtype == queries.dtype and nothing_transforms("cpu")) or are_hooked(*layers):
        return False
    return all(type(layer) is nn.Linear and type(layer.weight) is nn.Parameter for layer in layers)


def absorb_queries(queries: Tensor, to_key: nn.Module, num_heads: int, batch: int) -> Tensor:
    """``(queries, width)`` to ``(batch, 1, num_heads * queries, width)``, to attend over tokens as they are.

    Scores are to be scaled by :func:`scale_of`.
    """
    assert isinstance(to_key, nn.Linear)
    by_head = queries.unflatten(1, (num_heads, -1)).transpose(0, 1)
    absorbed = torch.bmm(by_head, to_key.weight.unflatten(0, (num_heads, -1))).flatten(0, 1)
    # Its gradient is zero, which is not the same as none: processes that train together wait for it.
    absorbed = absorbed + 0.0 * to_key.bias.sum()
    return absorbed.expand(batch, 1, -1, -1)


def scale_of(queries: Tensor, num_heads: int) -> float:
    """That of heads that share the width, ``1 / sqrt(head_dim)``."""
    return float((queries.shape[1] // num_heads) ** -0.5)


def project_pooled(pooled: Tensor, to_value: nn.Module, num_heads: int) -> Tensor:
    """``(B, 1, num_heads * queries, width)`` to ``(B, num_heads, queries, head_dim)``."""
    assert isinstance(to_value, nn.Linear)
    by_head = pooled.squeeze(1).unflatten(1, (num_heads, -1)).transpose(0, 1)  # (num_heads, B, queries, width)
    weight = to_value.weight.unflatten(0, (num_heads, -1)).mT
    projected = torch.baddbmm(to_value.bias.view(num_heads, 1, -1), by_head.flatten(1, 2), weight)
    return projected.unflatten(1, by_head.shape[1:3]).transpose(0, 1)
