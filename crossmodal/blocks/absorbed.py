"""Which learned queries attend over tokens that are not projected."""

from typing import Protocol

from torch import nn

from crossmodal.blocks.operators import Implementation
from crossmodal.nn._absorbed import AbsorbedQueries, Projection, are_mere_weights


class LearnedQueries(Protocol):
    """A module that pools by queries ``(queries, width)`` of its own."""

    implementation: Implementation
    num_heads: int
    queries: nn.Parameter
    to_key: nn.Linear
    to_value: nn.Linear


def absorbed_queries(module: LearnedQueries) -> AbsorbedQueries | None:
    """None for the reference, and where the projections are more than their weights."""
    if module.implementation != "fused" or not are_mere_weights(module.to_key, module.to_value):
        return None
    key, value = (Projection(layer.weight, layer.bias) for layer in (module.to_key, module.to_value))
    return AbsorbedQueries(module.queries, module.num_heads, key, value)
