"""A call of `attention_varlen`."""

import math
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from tests.problems.feature_order import FeatureOrder
from tests.problems.layouts import lay_out
from tests.problems.terms import Sink


@dataclass(frozen=True)
class Varlen:
    seqlens_q: tuple[int, ...]
    seqlens_k: tuple[int, ...]
    beyond_q: int = 0  # rows after the last sequence
    beyond_k: int = 0
    longer: int = 0  # by how much max_seqlen_q and max_seqlen_k exceed the longest sequence
    dtype: torch.dtype = torch.float32
    heads: int = 1
    heads_k: int | None = None
    head_dim: int = 1
    head_dim_v: int = 1
    query_layout: str = "heads_inside"
    key_layout: str = "heads_inside"
    value_layout: str = "heads_inside"
    dout_layout: str = "heads_inside"
    scale: float | None = None
    is_causal: bool = False
    causal_align: str = "upper_left"
    window_size: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    sink: Sink | None = None
    dropout_p: float = 0.0
    dropout_seed: int = 0
    poisoned: bool = False  # NaN in the rows after the last sequence
    differentiated: frozenset[str] = frozenset({"query", "key", "value", "sink"})
    asked: frozenset[str] = frozenset({"out"})
    seed: int = 0

    @property
    def scale_in_full(self) -> float:
        if self.scale is not None:
            return self.scale
        return 1 / math.sqrt(self.head_dim) if self.head_dim else 1.0

    def build(self) -> "VarlenTensors":
        generator = torch.Generator().manual_seed(self.seed)
        heads_k = self.heads if self.heads_k is None else self.heads_k
        last_q, last_k = sum(self.seqlens_q), sum(self.seqlens_k)

        def packed(heads: int, last: int, beyond: int, width: int, layout: str) -> Tensor:
            tensor = lay_out((1, heads, last + beyond, width), layout, self.dtype, generator)[0].transpose(0, 1)
            if self.poisoned and 0 not in tensor.stride():
                tensor[last:] = float("nan")
            return tensor

        def leaf(name: str, tensor: Tensor) -> Tensor:
            return tensor.detach().requires_grad_(name in self.differentiated)

        def starts(seqlens: tuple[int, ...]) -> Tensor:
            return torch.tensor([0, *accumulate(seqlens)], dtype=torch.int32)

        query = packed(self.heads, last_q, self.beyond_q, self.head_dim, self.query_layout)
        key = packed(heads_k, last_k, self.beyond_k, self.head_dim, self.key_layout)
        value = packed(heads_k, last_k, self.beyond_k, self.head_dim_v, self.value_layout)
        dout = packed(self.heads, last_q, self.beyond_q, self.head_dim_v, self.dout_layout)
        accumulating = torch.float64 if self.dtype == torch.float64 else torch.float32
        dlse = torch.randn((self.heads, last_q + self.beyond_q), generator=generator, dtype=accumulating)
        cotangents = {"out": dout, "lse": dlse}
        return VarlenTensors(
            leaf("query", query),
            leaf("key", key),
            leaf("value", value),
            starts(self.seqlens_q),
            starts(self.seqlens_k),
            max(self.seqlens_q, default=0) + self.longer,
            max(self.seqlens_k, default=0) + self.longer,
            None if self.sink is None else leaf("sink", self.sink.build(self.heads, generator)),
            {n: c for n, c in cotangents.items() if n in self.asked},
        )


@dataclass
class VarlenTensors:
    query: Tensor
    key: Tensor
    value: Tensor
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    sink: Tensor | None
    cotangents: dict[str, Tensor]

    def leaves(self) -> dict[str, Tensor]:
        found = {"query": self.query, "key": self.key, "value": self.value, "sink": self.sink}
        return {name: t for name, t in found.items() if t is not None and t.requires_grad}

    def reordered(self, order: FeatureOrder) -> "VarlenTensors":
        return replace(
            self,
            **{name: order.leaf(getattr(self, name)) for name in ("query", "key", "value")},
            cotangents=order.cotangents(self.cotangents),
        )
