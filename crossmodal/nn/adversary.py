"""Alignment by an adversary: features of all modalities become alike because a classifier cannot tell them apart."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from crossmodal._validate import check_tensor
from crossmodal.nn.linear import Linear


def gradient_reversal(input: Tensor, strength: float = 1.0) -> Tensor:
    """The identity, whose gradient is turned round: ``-strength`` times what flows back (Ganin & Lempitsky, 2015).

    Args:
        input: any floating point tensor.
        strength: how much of the gradient comes through, 0 = none; raised from 0 to 1 in training.

    Returns:
        ``input``, as a view.

    Raises:
        TypeError: if ``input`` is no tensor.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> crossmodal.nn.gradient_reversal(x, 0.5).sum().backward()
        >>> x.grad
        tensor([-0.5000, -0.5000])
    """
    check_tensor("input", input)
    return _Reversal.apply(input, strength)


class _Reversal(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, strength: float) -> Tensor:
        return input.view_as(input)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.strength = inputs[1]

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * dout, None


def _leaky_relu() -> nn.Module:
    return nn.LeakyReLU(0.2)


class ModalityDiscriminator(nn.Module):
    """Tells which modality a feature vector comes from, and, behind :func:`gradient_reversal`, makes encoders hide it.

    Train it with the rest of the model on the cross-entropy of its logits: its own weights learn to tell modalities
    apart, the encoders before it to leave nothing to tell them by (Ganin & Lempitsky, 2015).

    Args:
        features: of the vectors.
        num_modalities: classes; 1 makes it a critic, whose answer is a score without bounds.
        hidden_dim: width of the hidden layers, ``features`` if None.
        num_layers: hidden layers.
        activation: makes what follows each of them. A gradient penalty, which differentiates twice, wants a smooth one,
            such as :class:`torch.nn.SiLU`; ask ``classify`` then, which turns nothing round.
        device, dtype: of the parameters.

    Example:
        >>> discriminator = crossmodal.nn.ModalityDiscriminator(64, 3)
        >>> discriminator(torch.randn(2, 197, 64), strength=0.1).shape
        torch.Size([2, 197, 3])
    """

    def __init__(
        self,
        features: int,
        num_modalities: int,
        *,
        hidden_dim: int | None = None,
        num_layers: int = 2,
        activation: Callable[[], nn.Module] = _leaky_relu,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_modalities = num_modalities
        hidden_dim = features if hidden_dim is None else hidden_dim
        layers: list[nn.Module] = []
        for width in [features, *[hidden_dim] * num_layers][:num_layers]:
            layers += [Linear(width, hidden_dim, **factory), activation()]
        self.classify = nn.Sequential(
            *layers, Linear(hidden_dim if num_layers else features, num_modalities, **factory)
        )

    def forward(self, features: Tensor, strength: float = 1.0) -> Tensor:
        """Logits ``(..., num_modalities)`` of ``(..., features)``, which get the gradient ``-strength`` times."""
        return self.classify(gradient_reversal(features, strength))
