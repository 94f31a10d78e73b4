"""A call of `weighted_sum` or `softmax_weighted_sum`."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tests.problems.feature_order import FeatureOrder
from tests.problems.layouts import distinct_elements, draw_lengths, lay_out, poison
from tests.problems.terms import Term


@dataclass(frozen=True)
class WeightedSum:
    """With `softmax` the weights are scores."""

    dtype: torch.dtype = torch.float32
    batch: int = 1
    heads: int = 1
    seqlen_q: int = 1
    seqlen_k: int = 1
    head_dim: int = 1
    weights_layout: str = "plain"
    values_layout: str = "plain"
    dout_layout: str = "plain"
    lengths: torch.dtype | None = None
    mask: Term | None = None
    softmax: bool = False
    scale: float | None = None
    magnitude: float = 1.0  # of weights or scores
    hides: float = 0.0  # probability that a score is -inf
    poisoned: bool = False  # NaN in values beyond lengths
    differentiated: frozenset[str] = field(default=frozenset({"weights", "values"}))
    seed: int = 0

    @property
    def scale_in_full(self) -> float:
        return 1.0 if self.scale is None else self.scale

    def build(self) -> "WeightedSumTensors":
        generator = torch.Generator().manual_seed(self.seed)
        rows = (self.batch, self.heads, self.seqlen_q)
        weights = lay_out((*rows, self.seqlen_k), self.weights_layout, self.dtype, generator)
        if self.magnitude != 1.0:
            distinct_elements(weights).mul_(self.magnitude)
        if self.hides and 0 not in weights.stride():
            weights.masked_fill_(torch.rand(weights.shape, generator=generator) < self.hides, float("-inf"))
        shape = (self.batch, self.heads, self.seqlen_k, self.head_dim)
        values = lay_out(shape, self.values_layout, self.dtype, generator)
        dout = lay_out((*rows, self.head_dim), self.dout_layout, self.dtype, generator)
        lengths = draw_lengths(self.lengths, self.batch, self.seqlen_k, generator)
        if self.poisoned:
            poison(values, lengths)
        mask = None if self.mask is None else self.mask.build((*rows, self.seqlen_k), generator)
        leaves = {"weights": weights, "values": values}
        leaves = {n: t.detach().requires_grad_(n in self.differentiated) for n, t in leaves.items()}
        return WeightedSumTensors(leaves["weights"], leaves["values"], lengths, mask, {"out": dout})


@dataclass
class WeightedSumTensors:
    weights: Tensor
    values: Tensor
    lengths: Tensor | None
    mask: Tensor | None
    cotangents: dict[str, Tensor]

    def leaves(self) -> dict[str, Tensor]:
        return {n: t for n, t in (("weights", self.weights), ("values", self.values)) if t.requires_grad}

    def reordered(self, order: FeatureOrder) -> "WeightedSumTensors":
        return replace(self, values=order.leaf(self.values), cotangents=order.cotangents(self.cotangents))
