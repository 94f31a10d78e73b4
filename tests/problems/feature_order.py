"""The same problem with its features in another order: equal results, other rounding in every sum over features."""

import torch
from torch import Tensor

# What is as wide as the features, by the last part of its name.
FEATURES = ("out", "query", "key", "value", "values")


class FeatureOrder:
    """Number 0 is the reverse, each further one a random order."""

    def __init__(self, number: int) -> None:
        self.number = number

    def apply(self, tensor: Tensor) -> Tensor:
        return tensor.detach()[..., self._order(tensor.shape[-1])]

    def leaf(self, tensor: Tensor) -> Tensor:
        return self.apply(tensor).requires_grad_(tensor.requires_grad)

    def cotangents(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.apply(c) if name in FEATURES else c for name, c in given.items()}

    def undo(self, results: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: self.undo_one(t) if n.rpartition(".")[2] in FEATURES else t for n, t in results.items()}

    def undo_one(self, tensor: Tensor) -> Tensor:
        return tensor[..., self._order(tensor.shape[-1]).argsort()]

    def _order(self, width: int) -> Tensor:
        if self.number == 0:
            return torch.arange(width - 1, -1, -1)
        return torch.randperm(width, generator=torch.Generator().manual_seed(self.number))
