"""Losses that bring together what belongs together: rows of one modality, columns of another."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from crossmodal.models.means import mean_or_zero


def info_nce(cosines: Tensor, scale: Tensor | float, *, same: Tensor | None = None, hardness: float = 0.0) -> Tensor:
    """Cross-entropy of finding the partner among all, both ways (van den Oord et al., arXiv 1807.03748; CLIP).

    A row with several partners is charged the mean over them (Khosla et al., arXiv 2004.11362). With ``hardness`` b > 0
    a negative counts ``exp(b cos)`` times, divided by the row's mean of that: near ones count more (Robinson et al.,
    arXiv 2010.04592, without the correction for false negatives, which ``same`` names).

    Args:
        cosines: ``(B, B)``; the partner of row i is column i.
        scale: what cosines are multiplied by, the inverse of the temperature.
        same: ``(B, B)`` bool, pairs that belong together too; None: the diagonal alone.
        hardness: b.

    Returns:
        Scalar, in nats; 0 of no pairs.
    """
    same = _diagonal(cosines) if same is None else same
    return 0.5 * (_one_way(cosines, scale, same, hardness) + _one_way(cosines.T, scale, same.T, hardness))


def sigmoid_loss(
    cosines: Tensor, scale: Tensor | float, shift: Tensor | float, *, same: Tensor | None = None
) -> Tensor:
    """For every pair on its own, whether it belongs together (Zhai et al., arXiv 2303.15343).

    ``-log sigmoid(z (scale cos + shift))``, z = 1 for pairs that do and -1 for others, summed over the pairs and
    divided by B; 0 of no pairs.

    Args:
        cosines, same: see :func:`info_nce`.
        scale, shift: learned; -10 is a good first shift, since nearly all pairs do not belong together.
    """
    same = _diagonal(cosines) if same is None else same
    sign = torch.where(same, 1.0, -1.0)
    return -logsigmoid(sign * (scale * cosines + shift)).sum() / max(1, len(cosines))


def hardest_negatives(cosines: Tensor, same: Tensor, count: int) -> Tensor:
    """``(B, count)`` int64: of each row the columns that are nearest and do not belong to it, nearest first.

    Of no rows there are none, whatever ``count`` is.

    Raises:
        ValueError: when a row has fewer than ``count`` negatives.
    """
    if not len(cosines):
        return torch.zeros(0, count, dtype=torch.int64, device=cosines.device)
    fewest = int((~same).sum(1).min())
    if count > fewest:
        raise ValueError(f"count must be at most {fewest}, the negatives of a row, got {count}")
    return cosines.masked_fill(same, -math.inf).topk(count, dim=1).indices


def _one_way(cosines: Tensor, scale: Tensor | float, same: Tensor, hardness: float) -> Tensor:
    scores = scale * cosines
    if hardness:
        weights = (hardness * cosines.detach()).masked_fill(same, -math.inf)
        mean = weights.logsumexp(1, keepdim=True) - (~same).sum(1, keepdim=True).clamp(min=1).log()
        scores = torch.where(same, scores, scores + weights - mean)
    logs = scores.log_softmax(1)
    partners = same.sum(1).clamp(min=1)
    return -mean_or_zero(logs.masked_fill(~same, 0.0).sum(1) / partners)


def _diagonal(cosines: Tensor) -> Tensor:
    return torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
