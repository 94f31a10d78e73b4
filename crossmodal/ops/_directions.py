"""Gradients in several directions at once: ``is_grads_batched=True``, ``jacobian(vectorize=True)``.

torch hands these to backward as one tensor that hides its first dimension, under an older vmap than `torch.func`'s, in
which operators have no rules of their own, and those of lists of tensors no way at all. The graph of a custom Function
would be that of the tensor that hides, and lost when the hidden ones are shown: a Function belongs inside the loop over
directions, never around it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeGuard

import torch
from torch import Tensor

Gradients = Callable[..., Sequence[Tensor]]

_LEVELS = range(1, 64)  # what vmaps of torch count as, from the outermost to as many as may be nested


def in_each_direction(gradients: Gradients, *cotangents: Tensor | None) -> Sequence[Tensor]:
    """``gradients(*cotangents)``, one direction after the other where they hide several."""
    if torch.compiler.is_compiling() or not any(_hides_directions(c) for c in cotangents):
        return gradients(*cotangents)
    # The innermost first: torch wants to be given them back from the outermost on.
    level = max(level for c in cotangents if _hides_directions(c) for level in _levels(c))
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


def _levels(cotangent: Tensor) -> Iterator[int]:
    """At which vmaps it hides directions.

    torch tells of no tensor, and the vmaps of this thread are not those of the one that asked for gradients.
    """
    for level in _LEVELS:
        shown = [torch._remove_batch_dim(cotangent, level, size, 0) for size in (1, 2)]
        if len(shown[0]) == len(shown[1]):  # else the size is the one given: it hides nothing there
            yield level
            cotangent = shown[0]
            if not _hides_directions(cotangent):
                return
    raise RuntimeError(f"gradients of a vmap outside levels {_LEVELS.start} to {_LEVELS.stop - 1}")


def _hides_directions(cotangent: Tensor | None) -> TypeGuard[Tensor]:
    return cotangent is not None and torch._C._functorch.is_legacy_batchedtensor(cotangent)
