"""A discrete common space: every modality's vectors are put together of the same few codes."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot


class SharedCodebook(nn.Module):
    """Replaces each part of a vector by the nearest of a few learned codes.

    A vector is cut into ``groups`` parts, and each part, by its direction, replaced by one of ``codes`` unit vectors
    (product quantisation, Jegou et al., TPAMI 2011). What is left of it is which codes were chosen, so modalities that
    choose them equally often are alike to everyone. The gradient is that of a softmax over the codes (straight-through:
    Bengio et al., arXiv 1308.3432; van den Oord et al., arXiv 1711.00937). In training, noise among the choices lets
    codes be found that are never nearest (Jang et al., arXiv 1611.01144).

    In evaluation a part that lies between two codes is left out, zero: a guess would put what is doubtful among what is
    sure, where it is found.

    Args:
        width: of the vectors; a multiple of ``groups``.
        groups: parts of a vector.
        codes: of each part.
        sharpness: what cosines are multiplied by in the softmax.
        noise: how much of a Gumbel variable is added to that in training; drawn from torch's generator.
        doubt: in evaluation, a part whose cosines with the two nearest codes differ by less is left out.

    Raises:
        ValueError: when ``width`` is not a multiple of ``groups``, or there are fewer than two codes.
    """

    def __init__(
        self,
        width: int,
        *,
        groups: int = 8,
        codes: int = 4,
        sharpness: float = 20.0,
        noise: float = 0.3,
        doubt: float = 0.1,
    ) -> None:
        super().__init__()
        if groups < 1 or width % groups:
            raise ValueError(f"width must be a multiple of groups, got {width} and {groups}")
        if codes < 2:
            raise ValueError(f"codes must be at least 2, got {codes}")
        self.groups, self.sharpness, self.noise, self.doubt = groups, sharpness, noise, doubt
        self.codes = nn.Parameter(torch.randn(groups, codes, width // groups))

    def forward(self, values: Tensor) -> Tensor:
        """``(N, width)`` to ``(N, width)`` of length 1, or less where parts are left out."""
        codes = normalize(self.codes, dim=2)
        scores = self._scores(values)
        if self.training:
            scores = scores + self.noise * _gumbel_like(scores)
        chosen = one_hot(scores.argmax(2), codes.shape[1]).to(codes.dtype)
        if self.training:
            soft = scores.softmax(2)
            chosen = chosen + (soft - soft.detach())
        else:
            chosen = chosen * self._sure(scores).unsqueeze(2)
        parts = torch.einsum("ngk,gkd->ngd", chosen, codes)
        return parts.flatten(1) / self.groups**0.5

    def choices(self, values: Tensor) -> Tensor:
        """``(N, groups)`` int64: which codes are nearest; -1 where a part is left out."""
        scores = self._scores(values)
        return scores.argmax(2).where(self._sure(scores), -1)

    def _sure(self, scores: Tensor) -> Tensor:
        first, second = scores.topk(2, dim=2).values.unbind(2)
        return first - second >= self.sharpness * self.doubt

    def _scores(self, values: Tensor) -> Tensor:
        parts = normalize(values.unflatten(1, (self.groups, -1)), dim=2)
        return self.sharpness * torch.einsum("ngd,gkd->ngk", parts, normalize(self.codes, dim=2))


def _gumbel_like(values: Tensor) -> Tensor:
    return -torch.empty_like(values).exponential_().clamp(min=1e-30).log()


class OwnStatistics(nn.Module):
    """Batch normalisation of one modality with its own statistics, without learned weights (Chang et al., 1906.03950).

    Args:
        width: of the vectors.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)

    def forward(self, values: Tensor, present: Tensor) -> Tensor:
        """``(N, width)`` normalised; only rows where ``present`` ``(N,)`` is True count in the statistics."""
        if self.training and int(present.sum()) > 1:
            normed = self.norm(values[present])
            return torch.zeros_like(values, dtype=normed.dtype).masked_scatter(present.unsqueeze(1), normed)
        norm = self.norm
        return nn.functional.batch_norm(values, norm.running_mean, norm.running_var, eps=norm.eps)
