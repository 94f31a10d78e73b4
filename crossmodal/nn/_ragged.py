"""Nested tensors of either layout as the rows of all samples, one after the other, and back."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nested._internal.nested_tensor import nested_view_from_values_offsets

from crossmodal._validate import check_tensor


class Ragged(NamedTuple):
    """The samples of a nested ``(batch, j, features)``."""

    rows: Tensor  # (total, features)
    cu_seqlens: Tensor  # (batch + 1,) int32
    max_seqlen: int


def ragged(name: str, tensor: Any) -> Ragged:
    """Takes a nested tensor apart; a jagged one without a copy."""
    check_tensor(name, tensor)
    if not tensor.is_nested:
        raise ValueError(
            f"{name} must be nested as the others are, got a dense tensor of shape {tuple(tensor.shape)}: query, key "
            "and value are all nested or all dense"
        )
    if tensor.dim() != 3:
        raise ValueError(f"{name} must be nested as (batch, j, features), got {tensor.dim()} dimensions")
    if tensor.layout != torch.jagged:
        samples = tensor.unbind()
        lengths = [sample.shape[0] for sample in samples]
        ends = torch.tensor([0, *lengths]).cumsum(0).to(tensor.device, torch.int32)
        return Ragged(torch.cat(samples), ends, max(lengths, default=0))
    if tensor.lengths() is not None or tensor._ragged_idx != 1:
        raise ValueError(f"{name} must be nested as (batch, j, features) without holes, got another form")
    known = tensor._maybe_max_seqlen
    if known is None:
        # Reading it would break the graph; no sequence is longer than all of them.
        compiling = torch.compiler.is_compiling()
        known = tensor.values().shape[0] if compiling else tensor._get_max_seqlen()
    return Ragged(tensor.values(), tensor.offsets().to(torch.int32), known)


def nested_like(rows: Tensor, like: Any) -> Tensor:
    """``(total, features)`` as a nested tensor with the samples and the layout of ``like``."""
    if like.layout == torch.jagged:
        return nested_view_from_values_offsets(
            rows, like.offsets(), min_seqlen=like._maybe_min_seqlen, max_seqlen=like._maybe_max_seqlen
        )
    lengths = [sample.shape[0] for sample in like.unbind()]
    return torch.nested.as_nested_tensor(list(rows.split(lengths)), layout=torch.strided)


def padded(rows: Tensor, shape: Ragged) -> Tensor:
    """``(total, ...)`` as ``(batch, max_seqlen, ...)``, zeros behind each sample."""
    ends = shape.cu_seqlens.to(torch.int64)
    place = torch.arange(shape.max_seqlen, device=rows.device)
    there = place < ends.diff()[:, None]
    index = (ends[:-1, None] + place).where(there, 0)
    taken = rows[index] if rows.shape[0] else rows.new_zeros((*index.shape, *rows.shape[1:]))
    return taken.where(there.reshape(*there.shape, *[1] * (rows.dim() - 1)), 0)
