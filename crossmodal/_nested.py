"""Jagged nested tensors, as ``attention`` takes them, and the packed form that ``attention_varlen`` computes with.

Operators and references share this. A jagged tensor is its values, all sequences in one row, beside offsets: what
FlashAttention calls cu_seqlens. Nothing is copied on the way in or out.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# From torch.nested, whose public name for it, nested_tensor_from_jagged, logs a warning at its first call and refuses
# to be exported.
from torch.nested._internal.nested_tensor import nested_view_from_values_offsets

from crossmodal._validate import check_tensor, values_are_readable

Jagged = Any  # a torch.Tensor that has offsets() and lengths(), of which torch's type hints know nothing


class Packed(NamedTuple):
    """What ``attention_varlen`` takes first, in its order."""

    query: Tensor  # (total_q, num_heads, head_dim)
    key: Tensor
    value: Tensor
    cu_seqlens_q: Tensor  # (batch + 1,) int32
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int


def nested_attention(
    varlen: Callable[..., Any],
    query: Jagged,
    key: Jagged,
    value: Jagged,
    attn_mask: Tensor | None,
    key_lengths: Tensor | None,
    query_lengths: Tensor | None,
    **options: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """A call of ``attention`` with jagged tensors, made by ``varlen``, with the other arguments as ``options``."""
    packed = pack(query, key, value, attn_mask, key_lengths, query_lengths)
    result = varlen(*packed, **options)
    if isinstance(result, Tensor):
        return _unpack(result, query)
    out, lse = result
    return _unpack(out, query), _unpack(lse.transpose(0, 1), query)


def pack(
    query: Jagged,
    key: Jagged,
    value: Jagged,
    attn_mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
) -> Packed:
    """Checks what only nested tensors can get wrong, and packs them."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        _check_jagged(name, tensor)
    for name, tensor in (("key", key), ("value", value)):
        if tensor.dim() != query.dim():
            raise ValueError(f"{name} must have query's {query.dim()} dimensions, got {tensor.dim()}")
        if tensor.shape[0] != query.shape[0]:
            raise ValueError(f"{name} must have query's batch {query.shape[0]}, got {tensor.shape[0]}")
    for name, forbidden, instead in (
        ("attn_mask", attn_mask, "use is_causal and window_size, or padded tensors"),
        ("key_lengths", key_lengths, "they have their own"),
        ("query_lengths", query_lengths, "they have their own"),
    ):
        if forbidden is not None:
            raise ValueError(f"{name} must be None beside nested tensors: {instead}")
    offsets = key.offsets()
    if value.offsets() is not offsets and values_are_readable(offsets) and not torch.equal(value.offsets(), offsets):
        lengths = [t.offsets().diff().tolist() for t in (key, value)]
        raise ValueError(f"value must have key's sequence lengths {lengths[0]}, got {lengths[1]}")
    return Packed(
        _rows(query),
        _rows(key),
        _rows(value),
        query.offsets().to(torch.int32),
        offsets.to(torch.int32),
        _max_seqlen(query),
        _max_seqlen(key),
    )


def _check_jagged(name: str, tensor: Any) -> None:
    check_tensor(name, tensor)
    if not tensor.is_nested:
        raise ValueError(
            f"{name} must be nested as the others are, got a dense tensor of shape {tuple(tensor.shape)}: query, key "
            "and value are all nested or all dense"
        )
    if tensor.layout != torch.jagged:
        raise ValueError(f"{name} must be a nested tensor of layout torch.jagged, got {tensor.layout}")
    if tensor.lengths() is not None:
        raise ValueError(f"{name} must be a nested tensor without holes, got one that has lengths()")
    if (tensor.dim(), tensor._ragged_idx) not in ((4, 2), (3, 1)):
        raise ValueError(
            f"{name} must be nested as (batch, num_heads, j, head_dim), which is (batch, j, num_heads, head_dim)"
            f".transpose(1, 2), or as (batch, j, head_dim), got {tensor.dim()} dimensions of which dimension "
            f"{tensor._ragged_idx} is ragged"
        )


def _rows(tensor: Jagged) -> Tensor:
    """(total, num_heads, head_dim), a view."""
    values = tensor.values()
    return values.transpose(0, 1) if values.dim() == 3 else values.unsqueeze(1)


def _unpack(rows: Tensor, query: Jagged) -> Tensor:
    """(total, num_heads, ...) as a nested tensor of query's form, with query's offsets: their sizes are the same."""
    dense_heads = query.dim() == 4
    return nested_view_from_values_offsets(
        rows.transpose(0, 1) if dense_heads else rows.squeeze(1),
        query.offsets(),
        ragged_idx=2 if dense_heads else 1,
        min_seqlen=query._maybe_min_seqlen,
        max_seqlen=query._maybe_max_seqlen,
    )


def _max_seqlen(tensor: Jagged) -> int:
    """The longest sequence if it is known or free to find out, otherwise a number that it cannot exceed."""
    known = tensor._maybe_max_seqlen
    if known is not None:
        return known
    if tensor.device.type == "cpu" and not torch.compiler.is_compiling():
        return tensor._get_max_seqlen()
    # Reading it would synchronise, or break the graph.
    return tensor.values().shape[tensor._ragged_idx - 1]
