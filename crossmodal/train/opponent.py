"""An adversary that learns by itself, and so can be ahead of what it judges."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from crossmodal.models.adversary import critic_loss, discriminator_loss
from crossmodal.nn import ModalityDiscriminator

_BETAS = (0.5, 0.9)  # of Gulrajani et al.: an adversary's aim moves, and long momentum would chase where it was


class Opponent:
    """Several steps of an adversary's own optimizer, on embeddings as they are, before each step of the towers.

    An adversary that learns in step with the towers lags behind them, and they run past each other; the gradient of one
    that is near its best points to where the modalities are alike (Goodfellow et al., arXiv 1406.2661; several steps:
    Arjovsky et al., arXiv 1701.07875; a rate of its own: Heusel et al., arXiv 1706.08500). The adversary's weights are
    taken from the towers' optimizer: they require no gradient outside :meth:`learn`.

    Several processes average its gradients, as they do the towers'.

    Args:
        adversary: a discriminator, or a critic with one output.
        steps: of its own, each time.
        rate: of its Adam.
    """

    def __init__(self, adversary: ModalityDiscriminator, *, steps: int, rate: float) -> None:
        self.adversary, self.steps = adversary, steps
        self._weights = list(adversary.parameters())
        self._optimizer = torch.optim.Adam(self._weights, lr=rate, betas=_BETAS)
        adversary.requires_grad_(False)

    @torch.enable_grad()
    def learn(self, first: Tensor, second: Tensor) -> None:
        """From the embeddings ``(N, width)`` of two modalities."""
        first, second = first.detach(), second.detach()
        self.adversary.requires_grad_(True)
        try:
            for _ in range(self.steps):
                slopes = torch.autograd.grad(adversarial_loss(self.adversary, first, second), self._weights)
                for weight, slope in zip(self._weights, slopes, strict=True):
                    weight.grad = _over_processes(slope)
                self._optimizer.step()
        finally:
            self._optimizer.zero_grad()
            self.adversary.requires_grad_(False)

    def state(self) -> dict[str, Any]:
        """What its optimizer remembers: tensors, by weight and name."""
        return {str(index): dict(values) for index, values in self._optimizer.state_dict()["state"].items()}

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """The inverse of :meth:`state`."""
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict(
            {"state": {int(index): dict(values) for index, values in state.items()}, "param_groups": groups}
        )


def adversarial_loss(
    adversary: ModalityDiscriminator, first: Tensor, second: Tensor, strength: float = 1.0, penalty: float = 10.0
) -> Tensor:
    """:func:`critic_loss` or :func:`discriminator_loss` of the embeddings ``(N, width)`` of two modalities."""
    # ``classify``: the losses turn the gradient round themselves.
    if adversary.num_modalities == 1:
        return critic_loss(adversary.classify, first, second, strength=strength, penalty=penalty)
    kinds = torch.arange(2, device=first.device).repeat_interleave(len(first))
    return discriminator_loss(adversary.classify, torch.cat([first, second]), kinds, strength)


def _over_processes(value: Tensor) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
        value /= torch.distributed.get_world_size()
    return value
