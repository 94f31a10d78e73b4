"""A call of `associate`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.problems.fusion import Fusion


@dataclass(frozen=True)
class Association:
    """The weights of `fusion`, or a summary of them; one modality is given as a key tensor if it is `as_attention`."""

    fusion: Fusion
    reduce: str | None = None
    topk: int | None = None

    def cotangent(self, result: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.fusion.seed + 1)
        return torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result.dtype)
