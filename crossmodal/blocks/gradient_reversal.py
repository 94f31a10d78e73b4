"""The identity, whose gradient has the other sign (Ganin and Lempitsky, arXiv 1409.7495)."""

from typing import Any

import torch
from torch import Tensor


class _GradientReversal(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, strength: float) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.strength = inputs[1]

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * dout, None


def gradient_reversal(values: Tensor, strength: float = 1.0) -> Tensor:
    """``values`` unchanged; on the way back gradients are multiplied by ``-strength``.

    What comes before it learns to make worse what comes after it.
    """
    out: Tensor = _GradientReversal.apply(values, strength)
    return out
