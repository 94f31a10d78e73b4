"""What joins the scores: masks, biases, sinks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.problems.layouts import lay_out


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
                # A float64 beyond float32's range would be -inf beside a float32 query.
                least = max(torch.finfo(self.dtype).min, torch.finfo(torch.float32).min)
                term.masked_fill_(lowest, least).masked_fill_(hidden, float("-inf"))
        return term.reshape(shape[4 - self.leading :]) if self.leading < 4 else term


@dataclass(frozen=True)
class Sink:
    dtype: torch.dtype = torch.float32
    offset: float = 0.0  # far above or far below the scores
    hides: float = 0.0  # probability of -inf: no sink for that head
    strided: bool = False

    def build(self, num_heads: int, generator: torch.Generator) -> Tensor:
        sink = torch.randn(num_heads, generator=generator, dtype=torch.float64) + self.offset
        sink[torch.rand(num_heads, generator=generator) < self.hides] = float("-inf")
        sink = sink.to(self.dtype)
        return torch.stack([sink, sink], dim=1)[:, 1] if self.strided else sink
