"""Problems as data: what a random test draws, prints when it fails, and turns into tensors."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from crossmodal import Source

# As a tensor of (batch, heads, rows, width) may lie in memory.
LAYOUTS = ("plain", "heads_inside", "strided_last", "transposed_last", "sliced", "one_batch", "one_head", "one_row")


def lay_out(shape: tuple[int, ...], layout: str, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Random normal numbers of `shape` in the named memory layout; a view of a larger or smaller storage."""

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    b, h, n, d = shape
    if layout == "heads_inside":
        return randn(b, n, h, d).transpose(1, 2)
    if layout == "strided_last":
        return randn(b, h, n, 2 * d + 1)[..., 1::2]
    if layout == "transposed_last":
        return randn(b, h, d, n).transpose(2, 3)
    if layout == "sliced":  # gaps everywhere, an odd storage offset
        return randn(b + 1, h + 1, n + 2, d + 3)[1:, 1:, 1:-1, 1:-2]
    if layout == "one_batch":
        return randn(1, h, n, d).expand(shape)
    if layout == "one_head":
        return randn(b, 1, n, d).expand(shape)
    if layout == "one_row":
        return randn(b, h, 1, d).expand(shape)
    return randn(b, h, n, d)


@dataclass(frozen=True)
class Term:
    """A mask or a bias."""

    dtype: torch.dtype
    broadcast: tuple[bool, bool, bool, bool] = (False, False, False, False)
    layout: str = "plain"
    hides: float = 0.0  # probability
    lowest: float = 0.0  # probability that a float entry is finfo.min: a score like any other
    leading: int = 4  # dimensions; fewer where the leading ones broadcast

    def build(self, full: tuple[int, ...], generator: torch.Generator) -> Tensor:
        shape = tuple(1 if one else n for one, n in zip(self.broadcast, full, strict=True))
        hidden = torch.rand(shape, generator=generator) < self.hides
        if self.dtype == torch.bool:
            term = lay_out(shape, self.layout, torch.float32, generator) > float("-inf")
            term = term & ~hidden if self.layout in ("plain", "heads_inside") else ~hidden
        else:
            term = lay_out(shape, self.layout, self.dtype, generator)
            if self.layout not in ("one_batch", "one_head", "one_row"):
                lowest = torch.rand(shape, generator=generator) < self.lowest
                term.masked_fill_(lowest, torch.finfo(self.dtype).min).masked_fill_(hidden, float("-inf"))
        return term.reshape(shape[4 - self.leading :]) if self.leading < 4 else term


@dataclass(frozen=True)
class Modality:
    seqlen: int
    lengths: torch.dtype | None = None
    mask: Term | None = None
    bias: Term | None = None
    key_layout: str = "plain"
    value_layout: str = "plain"


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
    as_attention: bool = False
    differentiated: frozenset[str] = frozenset({"query", "key", "value", "mask", "bias"})
    asked: frozenset[str] = frozenset({"out"})  # outputs whose gradient flows
    seed: int = 0

    def build(self) -> "FusionTensors":
        generator = torch.Generator().manual_seed(self.seed)

        def leaf(name: str, tensor: Tensor) -> Tensor:
            wanted = name in self.differentiated and tensor.is_floating_point()
            return tensor.detach().requires_grad_(wanted)

        def operand(name: str, rows: int, width: int, layout: str, factor: float) -> Tensor:
            tensor = lay_out((self.batch, self.heads, rows, width), layout, self.dtype, generator)
            if factor != 1.0:
                tensor = _scaled(tensor, factor)
            return leaf(name, tensor)

        query = operand("query", self.seqlen_q, self.head_dim, self.query_layout, self.magnitude)
        sources: list[Source | None] = []
        for m in self.modalities:
            if m is None:
                sources.append(None)
                continue
            full = (self.batch, self.heads, self.seqlen_q, m.seqlen)
            lengths = None
            if m.lengths is not None:
                lengths = torch.randint(0, m.seqlen + 1, (self.batch,), generator=generator).to(m.lengths)
            sources.append(
                Source(
                    operand("key", m.seqlen, self.head_dim, m.key_layout, self.magnitude),
                    operand("value", m.seqlen, self.head_dim_v, m.value_layout, 1.0),
                    lengths,
                    None if m.mask is None else leaf("mask", m.mask.build(full, generator)),
                    None if m.bias is None else leaf("bias", m.bias.build(full, generator)),
                )
            )
        rows = (self.batch, self.heads, self.seqlen_q)
        accumulate = torch.float64 if self.dtype == torch.float64 else torch.float32
        dout = lay_out((*rows, self.head_dim_v), self.dout_layout, self.dtype, generator)
        dlse = torch.randn(rows, generator=generator, dtype=accumulate)
        dmass = torch.randn((*rows, len(sources)), generator=generator, dtype=accumulate)
        return FusionTensors(
            query,
            sources,
            dout if "out" in self.asked else None,
            dlse if "lse" in self.asked else None,
            dmass if "mass" in self.asked else None,
        )


def _scaled(tensor: Tensor, factor: float) -> Tensor:
    """In place where strides allow it, so that the layout stays."""
    if 0 in tensor.stride():
        base = tensor.as_strided(
            [1 if s == 0 else n for n, s in zip(tensor.shape, tensor.stride(), strict=True)], tensor.stride()
        )
        base.mul_(factor)
        return tensor
    return tensor.mul_(factor)


@dataclass
class FusionTensors:
    query: Tensor
    sources: list[Source | None]
    dout: Tensor | None
    dlse: Tensor | None
    dmass: Tensor | None

    def leaves(self) -> dict[str, Tensor]:
        """Every tensor that a gradient is asked for, by a name that says where it is."""
        found = {"query": self.query}
        for i, source in enumerate(self.sources):
            if source is not None:
                for name in ("key", "value", "mask", "bias"):
                    found[f"sources[{i}].{name}"] = getattr(source, name)
        return {name: t for name, t in found.items() if t is not None and t.requires_grad}


@dataclass(frozen=True)
class WeightedSum:
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
    differentiated: frozenset[str] = field(default=frozenset({"weights", "values"}))
    seed: int = 0
