"""How well two modalities share a space."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


def recall_at(cosines: Tensor, same: Tensor, k: int = 1) -> float:
    """Share of the rows of which one of the ``k`` nearest columns belongs to them.

    Args:
        cosines: ``(N, M)``.
        same: ``(N, M)`` bool, the pairs that belong together.
        k: how many columns are looked at.
    """
    nearest = cosines.topk(min(k, cosines.shape[1]), dim=1).indices
    return same.gather(1, nearest).any(1).double().mean().item()


def modality_gap(first: Tensor, second: Tensor) -> float:
    """Distance between the means of two sets of unit vectors ``(N, width)`` (Liang et al., arXiv 2203.02053)."""
    return (first.mean(0) - second.mean(0)).norm().item()


def discriminator_accuracy(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, hidden: int = 128, steps: int = 300, seed: int = 0
) -> float:
    """How often a perceptron, trained anew on frozen embeddings, tells the modality of others: 0.5 is chance.

    The adversary of training is no judge of it: it may be weak, or behind.

    Args:
        train: embeddings ``(N, width)`` of the first and of the second modality, to learn from.
        test: the same, to be judged on; the two sets should be of equal size.
        hidden: units of the two hidden layers.
        steps: of Adam over all of ``train`` at once.
        seed: of the first weights; the global random state is left as it was.
    """
    values, kinds = _labelled(train)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        probe = nn.Sequential(
            nn.Linear(values.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2)
        )
        optimizer = torch.optim.Adam(probe.parameters(), lr=3e-3, weight_decay=1e-4)
        for _ in range(steps):
            optimizer.zero_grad()
            cross_entropy(probe(values), kinds).backward()
            optimizer.step()
    values, kinds = _labelled(test)
    with torch.no_grad():
        return (probe(values).argmax(1) == kinds).double().mean().item()


def _labelled(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    first, second = (part.detach() for part in pair)
    kinds = torch.cat([torch.zeros(len(first), dtype=torch.int64), torch.ones(len(second), dtype=torch.int64)])
    return torch.cat([first, second]), kinds
