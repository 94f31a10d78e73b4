"""A call of `fuse` or `attention`."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crossmodal import Source
from tests.problems.feature_order import FeatureOrder
from tests.problems.layouts import distinct_elements, draw_lengths, lay_out, poison
from tests.problems.terms import Sink, Term

DIFFERENTIABLE = frozenset({"query", "key", "value", "mask", "bias", "sink"})


@dataclass(frozen=True)
class Modality:
    seqlen: int
    lengths: torch.dtype | None = None
    mask: Term | None = None
    bias: Term | None = None
    key_layout: str = "plain"
    value_layout: str = "plain"
    heads_k: int | None = None  # a divisor of the heads: grouped-query attention


@dataclass(frozen=True)
class Fusion:
    """A call of `fuse`, or of `attention` if there is one modality and `as_attention`."""

    modalities: tuple[Modality | None, ...]
    dtype: torch.dtype = torch.float32
    batch: int = 1
    heads: int = 1
    seqlen_q: int = 1
    head_dim: int = 1
    head_dim_v: int = 1
    query_layout: str = "plain"
    dout_layout: str = "plain"
    magnitude: float = 1.0  # of query and keys
    scale: float | None = None
    is_causal: bool = False
    causal_align: str = "upper_left"
    window_size: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    sink: Sink | None = None
    query_lengths: torch.dtype | None = None
    dropout_p: float = 0.0
    dropout_seed: int = 0
    poisoned: bool = False  # NaN beyond lengths and query_lengths
    as_attention: bool = False
    differentiated: frozenset[str] = DIFFERENTIABLE
    asked: frozenset[str] = frozenset({"out"})  # outputs whose gradient flows
    seed: int = 0

    @property
    def scale_in_full(self) -> float:
        if self.scale is not None:
            return self.scale
        return 1 / math.sqrt(self.head_dim) if self.head_dim else 1.0

    def build(self) -> "FusionTensors":
        generator = torch.Generator().manual_seed(self.seed)

        def leaf(name: str, tensor: Tensor) -> Tensor:
            wanted = name in self.differentiated and tensor.is_floating_point()
            return tensor.detach().requires_grad_(wanted)

        def operand(
            name: str, heads: int, rows: int, width: int, layout: str, factor: float, lengths: Tensor | None
        ) -> Tensor:
            tensor = lay_out((self.batch, heads, rows, width), layout, self.dtype, generator)
            if factor != 1.0:
                distinct_elements(tensor).mul_(factor)
            if self.poisoned:
                poison(tensor, lengths)
            return leaf(name, tensor)

        query_lengths = draw_lengths(self.query_lengths, self.batch, self.seqlen_q, generator)
        query = operand(
            "query", self.heads, self.seqlen_q, self.head_dim, self.query_layout, self.magnitude, query_lengths
        )
        sources: list[Source | None] = []
        for m in self.modalities:
            if m is None:
                sources.append(None)
                continue
            full = (self.batch, self.heads, self.seqlen_q, m.seqlen)
            heads_k = self.heads if m.heads_k is None else m.heads_k
            lengths = draw_lengths(m.lengths, self.batch, m.seqlen, generator)
            sources.append(
                Source(
                    operand("key", heads_k, m.seqlen, self.head_dim, m.key_layout, self.magnitude, lengths),
                    operand("value", heads_k, m.seqlen, self.head_dim_v, m.value_layout, 1.0, lengths),
                    lengths,
                    None if m.mask is None else leaf("mask", m.mask.build(full, generator)),
                    None if m.bias is None else leaf("bias", m.bias.build(full, generator)),
                )
            )
        sink = None if self.sink is None else leaf("sink", self.sink.build(self.heads, generator))
        width = self.head_dim_v if any(s is not None for s in sources) else self.head_dim
        rows = (self.batch, self.heads, self.seqlen_q)
        accumulate = torch.float64 if self.dtype == torch.float64 else torch.float32
        dout = lay_out((*rows, width), self.dout_layout, self.dtype, generator)
        if self.poisoned:
            poison(dout, query_lengths)
        dlse = torch.randn(rows, generator=generator, dtype=accumulate)
        dmass = torch.randn((*rows, len(sources)), generator=generator, dtype=accumulate)
        cotangents = {"out": dout, "lse": dlse, "mass": dmass}
        return FusionTensors(
            query, sources, sink, query_lengths, {n: c for n, c in cotangents.items() if n in self.asked}
        )


@dataclass
class FusionTensors:
    query: Tensor
    sources: list[Source | None]
    sink: Tensor | None
    query_lengths: Tensor | None
    cotangents: dict[str, Tensor]

    def leaves(self) -> dict[str, Tensor]:
        """Every tensor that a gradient is asked for, by a name that says where it is."""
        found = {"query": self.query, "sink": self.sink}
        for i, source in enumerate(self.sources):
            if source is not None:
                for name in ("key", "value", "mask", "bias"):
                    found[f"sources[{i}].{name}"] = getattr(source, name)
        return {name: t for name, t in found.items() if t is not None and t.requires_grad}

    def reordered(self, order: FeatureOrder) -> "FusionTensors":
        sources = [
            None if s is None else s._replace(key=order.leaf(s.key), value=order.leaf(s.value)) for s in self.sources
        ]
        cotangents = order.cotangents(self.cotangents)
        return replace(self, query=order.leaf(self.query), sources=sources, cotangents=cotangents)
