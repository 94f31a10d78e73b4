"""How well two modalities share a space."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

_EQUAL = 1e-6  # what float32 makes of the cosines of the same two vectors, at different places of a matrix


def recall_at(cosines: Tensor, same: Tensor, k: int = 1) -> float:
    """Share of the rows of which one of the ``k`` nearest columns belongs to them.

    Columns that are equally near, as embeddings made of few codes often are, may be drawn in any order: a row counts
    with its chance. A cosine that is NaN is further than any other, and its column found by nobody.

    Args:
        cosines: ``(N, M)``.
        same: ``(N, M)`` bool, the pairs that belong together.
        k: how many columns are looked at.
    """
    k = min(k, cosines.shape[1])
    same = same & ~cosines.isnan()
    cosines = torch.where(cosines.isnan(), -math.inf, cosines)
    last = cosines.topk(k, dim=1).values[:, -1:]
    nearer = cosines > last + _EQUAL
    equal = (cosines == last) | ((cosines - last).abs() <= _EQUAL)  # infinities have no difference
    left = k - nearer.sum(1)  # places for those that are equally near as the k-th
    among, wrong = equal.sum(1), (equal & ~same).sum(1)
    # All places go to wrong ones: C(wrong, left) of C(among, left) choices.
    missed = (_log_choices(wrong, left) - _log_choices(among, left)).exp().where(wrong >= left, 0.0)
    missed = missed.where(~(nearer & same).any(1), 0.0)
    return (1 - missed).mean().item()


def _log_choices(count: Tensor, chosen: Tensor) -> Tensor:
    """``log C(count, chosen)``; of no meaning where that is 0."""
    count, chosen = count.double(), chosen.double()
    rest = (count - chosen).clamp(min=0)
    return (count + 1).lgamma() - (chosen + 1).lgamma() - (rest + 1).lgamma()


def modality_gap(first: Tensor, second: Tensor) -> float:
    """Distance between the means of two sets of unit vectors ``(N, width)`` (Liang et al., arXiv 2203.02053)."""
    return (first.mean(0) - second.mean(0)).norm().item()


def discriminator_accuracy(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, hidden: int = 128, steps: int = 300, seed: int = 0
) -> float:
    """How often a perceptron, trained anew on frozen embeddings, tells the modality of others: 0.5 is chance.

    The adversary of training is no judge of it: it may be weak, or behind.

    Args:
        train: embeddings ``(N, width)`` of the first and of the second modality, to learn from; of any floating dtype
            and device, the perceptron is of float32.
        test: the same, to be judged on; the two sets should be of equal size.
        hidden: units of the two hidden layers.
        steps: of Adam over all of ``train`` at once.
        seed: of the first weights; the global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        values, kinds = _labelled(train)
        torch.manual_seed(seed)
        probe = nn.Sequential(
            nn.Linear(values.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2)
        ).to(values.device)
        optimizer = torch.optim.Adam(probe.parameters(), lr=3e-3, weight_decay=1e-4)
        for _ in range(steps):
            optimizer.zero_grad()
            cross_entropy(probe(values), kinds).backward()
            optimizer.step()
    values, kinds = _labelled(test)
    with torch.no_grad():
        return (probe(values).argmax(1) == kinds).double().mean().item()


def _labelled(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    values = torch.cat([part.detach().float() for part in pair])
    return values, (torch.arange(len(values), device=values.device) >= len(pair[0])).long()
