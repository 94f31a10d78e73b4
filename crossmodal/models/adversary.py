"""Adversaries that make embeddings of different modalities look alike."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from crossmodal.models.means import mean_or_zero
from crossmodal.nn import gradient_reversal


def discriminator_loss(
    discriminator: Callable[[Tensor], Tensor], embeddings: Tensor, kinds: Tensor, strength: float = 1.0
) -> Tensor:
    """Cross-entropy of telling the modality, with the gradient turned round before it (Ganin and Lempitsky).

    Minimised, the discriminator learns to tell the modalities apart and what made the embeddings learns to prevent it.

    Args:
        discriminator: ``(N, width)`` to logits ``(N, modalities)``.
        embeddings: ``(N, width)``; the loss of none is 0.
        kinds: ``(N,)`` int64, the modality of each.
        strength: of the turned gradient.
    """
    logits = discriminator(gradient_reversal(embeddings, strength))
    return cross_entropy(logits, kinds) if len(kinds) else logits.sum()


def critic_loss(
    critic: Callable[[Tensor], Tensor], first: Tensor, second: Tensor, *, strength: float = 1.0, penalty: float = 10.0
) -> Tensor:
    """Wasserstein distance between two modalities, estimated by a critic under a gradient penalty, and minimised.

    ``E critic(second) - E critic(first) + penalty * (|grad critic| - 1)^2``; the gradient of the first two is turned
    round before the critic (Arjovsky et al., arXiv 1701.07875; Gulrajani et al., arXiv 1704.00028).

    Args:
        critic: ``(N, ...)`` to ``(N, 1)`` or ``(N,)``.
        first, second: ``(N, ...)`` of one shape; the loss of none is 0.
        strength: of the turned gradient.
        penalty: weight of the penalty; 0 leaves it out, where the critic does not learn.
    """
    apart = mean_or_zero(critic(gradient_reversal(second, strength)))
    apart = apart - mean_or_zero(critic(gradient_reversal(first, strength)))
    if not penalty:
        return apart
    return apart + penalty * gradient_penalty(critic, first.detach(), second.detach())


def gradient_penalty(critic: Callable[[Tensor], Tensor], first: Tensor, second: Tensor) -> Tensor:
    """``E (|d critic(x) / dx| - 1)^2`` at random points x between partners of the two; differentiated twice.

    The points are drawn from torch's generator.

    Args:
        critic: ``(N, ...)`` to ``(N, 1)`` or ``(N,)``; it may attend over tokens.
        first, second: ``(N, ...)`` of one shape.
    """
    share = torch.rand(len(first), *(1,) * (first.ndim - 1), dtype=first.dtype, device=first.device)
    with torch.inference_mode(False), torch.enable_grad():  # a slope can be asked for where nothing is learnt
        between = torch.lerp(first, second, share).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    # The root of 0 has no gradient; a critic that is flat somewhere is common at first.
    return mean_or_zero(((slope.flatten(1).square().sum(1) + 1e-12).sqrt() - 1).square())
