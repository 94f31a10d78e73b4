"""Leading dimensions: whatever SDPA takes, from none to three, becomes (batch, num_heads)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention.bias import CausalBias

from crossmodal._validate import FLOAT_DTYPES, check_device, check_tensor
from crossmodal.types import Source


def lead_shape(
    query: Tensor, present: list[tuple[int, Source]], names: Sequence[str], allow_gqa: bool
) -> tuple[int, ...]:
    lead = tuple(query.shape[:-2])
    for i, source in present:
        for field, tensor in (("key", source.key), ("value", source.value)):
            shape = tuple(tensor.shape[:-2])
            if allow_gqa and len(shape) >= 2 and len(lead) >= 2 and lead[-1] != 1 and shape[-1] not in (1, lead[-1]):
                if shape[-1] == 0 or lead[-1] % shape[-1] != 0:
                    raise ValueError(
                        f"{names[i]}{field}: num_heads_k must divide query's num_heads {lead[-1]}, got {shape[-1]}"
                    )
                shape = (*shape[:-1], 1)
            if shape == lead:
                continue  # broadcast_shapes costs more than a small kernel
            try:
                lead = tuple(torch.broadcast_shapes(lead, shape))
            except RuntimeError:
                raise ValueError(
                    f"{names[i]}{field}: leading dimensions {tuple(tensor.shape[:-2])} do not broadcast with "
                    f"{lead} (query has shape {tuple(query.shape)})"
                ) from None
        if allow_gqa and source.key.dim() >= 4 and source.value.dim() >= 4:
            heads, heads_v = source.key.shape[-3], source.value.shape[-3]
            grouped = any(h not in (1, lead[-1]) for h in (heads, heads_v))
            if grouped and heads != heads_v:
                raise ValueError(f"{names[i]}value must have key's num_heads_k {heads}, got {heads_v}")
    return lead


def heads_of(key: Tensor, num_heads: int, lead: tuple[int, ...], allow_gqa: bool) -> int:
    """Heads that this source is kept at: its own under grouped-query attention, otherwise the query's."""
    if not allow_gqa or len(lead) < 2 or key.dim() < 3 or key.shape[-3] == 1:
        return num_heads
    return key.shape[-3]


def folded(lead: tuple[int, ...]) -> tuple[int, int]:
    if len(lead) == 0:
        return 1, 1
    if len(lead) == 1:
        return lead[0], 1
    return math.prod(lead[:-1]), lead[-1]


def fold(tensor: Tensor, lead: tuple[int, ...], num_heads: int) -> Tensor:
    if len(lead) >= 2:
        lead = (*lead[:-1], num_heads)
    if tuple(tensor.shape[:-2]) != lead:
        tensor = tensor.expand(*lead, *tensor.shape[-2:])
    if len(lead) == 2:
        return tensor
    batch, heads = folded(lead)
    return tensor.reshape(batch, heads, *tensor.shape[-2:])


def fold_term(
    name: str,
    term: Tensor,
    lead: tuple[int, ...],
    seqlen_q: int,
    seqlen_k: int,
    like: Tensor,
    owner: str = "query",
) -> Tensor:
    """A mask or bias as 4-D with broadcast dimensions kept at 1, so that its gradient is reduced by the kernel."""
    check_tensor(name, term)
    if isinstance(term, CausalBias):  # its memory says nothing
        raise TypeError(f"{name} must be bool (True = attend) or floating point, got CausalBias: attention takes it")
    if term.dtype != torch.bool and term.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} must be bool (True = attend) or floating point, got {term.dtype}")
    check_device(name, term, like, owner)
    full = (*lead, seqlen_q, seqlen_k)
    shape = (1,) * (len(full) - term.dim()) + tuple(term.shape)
    if len(shape) != len(full) or any(a not in (1, b) for a, b in zip(shape, full, strict=True)):
        raise ValueError(f"{name} of shape {tuple(term.shape)} does not broadcast to {full}")
    term = term.reshape(shape)
    if len(lead) == 2:
        return term
    if len(lead) == 0:
        return term[None, None]
    if len(lead) == 1:
        return term[:, None]
    outer = shape[: len(lead) - 1]
    if any(n != 1 for n in outer) and outer != lead[:-1]:
        term = term.expand(*lead[:-1], *shape[len(lead) - 1 :])
        outer = lead[:-1]
    return term.reshape(math.prod(outer), *shape[len(lead) - 1 :])
