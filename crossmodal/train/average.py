"""A moving average of the weights, which is often better than they are themselves."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from crossmodal.train.processes import shared_as


class MovingAverage:
    """``average += (1 - d) * (weight - average)`` after every step.

    Args:
        module: whose weights and buffers are averaged.
        decay: per step, in [0, 1).
        forget: the weights at the beginning quickly, as is right for random ones: d is the smaller of ``decay`` and
            ``(1 + step) / (10 + step)`` (as in TensorFlow's ExponentialMovingAverage). Without it d is ``decay``.
    """

    def __init__(self, module: nn.Module, decay: float, *, forget: bool = True) -> None:
        self.decay, self.forget = decay, forget
        self.weights: dict[str, Tensor] = {name: value.detach().clone() for name, value in _floating(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the weights after ``step``, from 0."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.forget else self.decay
        current = _floating(module)
        torch._foreach_lerp_(list(self.weights.values()), [current[name] for name in self.weights], 1 - decay)

    @torch.no_grad()
    def exchange(self, module: nn.Module) -> None:
        """Swap average and weights; a second call swaps them back."""
        for name, value in _floating(module).items():
            kept = value.detach().clone()
            value.copy_(self.weights[name])
            self.weights[name].copy_(kept)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Go on from ``weights``, by name."""
        for name, value in self.weights.items():
            value.copy_(shared_as(value, weights[name]))


def _floating(module: nn.Module) -> dict[str, Tensor]:
    if isinstance(module, nn.parallel.DistributedDataParallel):  # the same names whoever trains
        module = module.module
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    kept = module.state_dict().keys()
    return {name: value for name, value in named.items() if value.is_floating_point() and name in kept}
