"""Gradients in several directions at once: ``is_grads_batched=True``, ``jacobian(vectorize=True)``.

torch hands these to backward as one tensor that hides its first dimension, under an older vmap than `torch.func`'s, in
which operators have no rules of their own, and those of lists of tensors no way at all.
"""

from collections.abc import Callable, Sequence
from typing import TypeGuard

import torch
from torch import Tensor

Gradients = Callable[..., Sequence[Tensor]]


def in_each_direction(gradients: Gradients, *cotangents: Tensor | None) -> Sequence[Tensor]:
    """``gradients(*cotangents)``, one direction after the other where they hide several."""
    if torch.compiler.is_compiling() or not any(_hides_directions(c) for c in cotangents):
        return gradients(*cotangents)
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    # Of one that hides directions of another level alone there is a single one here.
    shown = {i: torch._remove_batch_dim(c, level, 1, 0) for i, c in enumerate(cotangents) if _hides_directions(c)}
    count = max(map(len, shown.values()))

    def direction(place: int) -> list[Tensor | None]:
        each = list(cotangents)
        for i, several in shown.items():
            each[i] = several[min(place, len(several) - 1)]
        return each

    found = [in_each_direction(gradients, *direction(place)) for place in range(count)]
    return [torch._add_batch_dim(torch.stack(parts), 0, level) for parts in zip(*found, strict=True)]


def _hides_directions(cotangent: Tensor | None) -> TypeGuard[Tensor]:
    return cotangent is not None and torch._C._functorch.is_legacy_batchedtensor(cotangent)
