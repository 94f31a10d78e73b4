"""Which implementation of the operators a module calls."""

from types import ModuleType
from typing import Literal, get_args

from torch import Tensor, nn

import crossmodal
from crossmodal._validate import check_counts

Implementation = Literal["fused", "reference"]
Tokens = tuple[Tensor, Tensor]  # (B, L, width) and (B,) lengths


def operators_of(implementation: Implementation) -> ModuleType:
    """:mod:`crossmodal` or :mod:`crossmodal.reference`: the same functions, the same answers."""
    return crossmodal if implementation == "fused" else crossmodal.reference


def check_implementation(implementation: Implementation) -> None:
    """Raises ValueError for any other than the two."""
    if implementation not in get_args(Implementation):
        raise ValueError(f"implementation must be one of {', '.join(get_args(Implementation))}, got {implementation!r}")


def use_implementation(model: nn.Module, implementation: Implementation) -> None:
    """All layers of a model call the operators of this implementation from now on.

    Raises:
        ValueError: for any other than the two.
    """
    check_implementation(implementation)
    for module in model.modules():
        if "implementation" in vars(module):
            vars(module)["implementation"] = implementation


class Switchable(nn.Module):
    """A model whose parts all call the operators of one implementation."""

    @property
    def implementation(self) -> Implementation:
        """Which operators run; setting it changes all parts."""
        parts = (vars(module) for module in self.modules())
        return next((part["implementation"] for part in parts if "implementation" in part), "fused")

    @implementation.setter
    def implementation(self, implementation: Implementation) -> None:
        use_implementation(self, implementation)


def check_heads(width: int, num_heads: int) -> None:
    """Raises ValueError when the heads do not share the width evenly, or one of both is not positive."""
    check_counts(width=width, num_heads=num_heads)
    if width % num_heads:
        raise ValueError(f"width must be a multiple of num_heads, got {width} and {num_heads}")
