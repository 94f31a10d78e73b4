"""Checks of single arguments; errors say the argument's name, what came and what was wanted.

Operators and references share them, hence a call that one refuses is refused by the other, in the same words.
"""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from crossmodal.types import Source

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
CAUSAL_ALIGNMENTS = ("upper_left", "lower_right")


# What kernels count keys with.
MOST_KEYS = 2**31 - 1
# Beyond any sequence, and far from overflow when positions are added.
FARTHEST = 2**40


def check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def check_lengths(name: str, lengths: Tensor, batch: int, limit: int, like: Tensor, owner: str = "query") -> None:
    """Shape, dtype and device always; values on eager CPU tensors only (elsewhere the kernels clamp)."""
    check_tensor(name, lengths)
    if lengths.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} must be int32 or int64, got {lengths.dtype}")
    if tuple(lengths.shape) != (batch,):
        raise ValueError(f"{name} must have shape (batch,) = ({batch},), got {tuple(lengths.shape)}")
    check_device(name, lengths, like, owner)
    if batch > 0 and values_are_readable(lengths) and not lengths_lie_within(lengths, limit):
        wrong = (lengths < 0) | (lengths > limit)
        index = int(wrong.nonzero()[0])
        raise ValueError(f"{name} must lie in [0, {limit}], got {int(lengths[index])} at batch index {index}")


# Up to here Python's own minimum is faster than an operator and two numbers of it.
FEW_LENGTHS = 256


def lengths_lie_within(lengths: Tensor, limit: int) -> bool:
    """Of at least one length that can be read."""
    if lengths.shape[0] <= FEW_LENGTHS:
        values = lengths.tolist()
        return min(values) >= 0 and max(values) <= limit
    low, high = torch.aminmax(lengths)
    return low.item() >= 0 and high.item() <= limit


def check_cu_seqlens(name: str, cu_seqlens: Tensor, total: int, max_seqlen: int, suffix: str, like: Tensor) -> None:
    """Shape, dtype and device always; values on eager CPU tensors only (elsewhere the kernels clamp)."""
    check_tensor(name, cu_seqlens)
    if cu_seqlens.dtype != torch.int32:
        raise TypeError(f"{name} must be int32, got {cu_seqlens.dtype}")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(f"{name} must have shape (batch + 1,), got {tuple(cu_seqlens.shape)}")
    check_device(name, cu_seqlens, like)
    if not values_are_readable(cu_seqlens):
        return
    first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
    if first != 0:
        raise ValueError(f"{name} must start at 0, got {first} at index 0")
    lengths = cu_seqlens.long().diff()  # in int32 a wild difference could wrap into a tame one
    if lengths.shape[0] > 0:
        shortest, longest = torch.aminmax(lengths)
        if shortest < 0:
            at = int((lengths < 0).nonzero()[0]) + 1
            raise ValueError(
                f"{name} must not descend, got {int(cu_seqlens[at])} after {int(cu_seqlens[at - 1])} at index {at}"
            )
        if longest > max_seqlen:
            at = int((lengths > max_seqlen).nonzero()[0])
            raise ValueError(
                f"{name}: no sequence may be longer than max_seqlen{suffix} = {max_seqlen}, "
                f"got {int(lengths[at])} at batch index {at}"
            )
    if last > total:
        at = int((cu_seqlens > total).nonzero()[0])
        raise ValueError(
            f"{name} must lie in [0, total{suffix}] = [0, {total}], got {int(cu_seqlens[at])} at index {at}"
        )


def check_max_seqlen(name: str, value: int) -> None:
    if not is_int(value) and not isinstance(value, torch.SymInt):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    # Compilers would make a guard of it, that of an export's unbounded dimension; kernels check it, too.
    if not torch.compiler.is_compiling() and isinstance(value, int) and value > MOST_KEYS:
        raise ValueError(f"{name} must be at most {MOST_KEYS}, got {value}")
    if value < 0:
        raise ValueError(f"{name} must be at least 0, got {value}")


def values_are_readable(tensor: Tensor) -> bool:
    """Whether a Python branch on the values is free: an eager CPU tensor, no tracing, no vmap."""
    if torch.compiler.is_compiling() or tensor.device.type != "cpu" or torch._C._get_tracing_state() is not None:
        return False
    return type(tensor) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def check_query(query: Tensor) -> None:
    check_tensor("query", query)
    check_float("query", query)
    check_rank("query", query)


def check_beside_query(name: str, tensor: Any, query: Tensor) -> None:
    check_tensor(name, tensor)
    check_float(name, tensor)
    check_rank(name, tensor)
    check_device(name, tensor, query)
    check_same_dtype(name, tensor, query, "query")


def check_packed(name: str, tensor: Tensor) -> None:
    if tensor.dim() != 3:
        raise ValueError(
            f"{name} must be packed, (total, num_heads, head_dim), got {tensor.dim()} dimensions "
            f"(shape {tuple(tensor.shape)})"
        )


def check_is_source(prefix: str, source: Any) -> None:
    if not isinstance(source, Source):
        raise TypeError(f"{prefix.rstrip('.')} must be a crossmodal.Source or None, got {type(source).__name__}")


def check_source(query: Tensor, source: Any, prefix: str) -> None:
    check_is_source(prefix, source)
    for field, tensor in (("key", source.key), ("value", source.value)):
        check_beside_query(prefix + field, tensor, query)
    if source.key.shape[-1] != query.shape[-1]:
        raise ValueError(
            f"{prefix}key must have query's head_dim {query.shape[-1]}, got {source.key.shape[-1]} "
            f"(shape {tuple(source.key.shape)})"
        )
    if not torch.compiler.is_compiling() and source.key.shape[-2] > MOST_KEYS:  # see check_max_seqlen
        raise ValueError(f"{prefix}key must have at most {MOST_KEYS} tokens, got {source.key.shape[-2]}")
    if source.key.shape[-2] != source.value.shape[-2]:
        raise ValueError(
            f"{prefix}value must have as many tokens as {prefix}key, {source.key.shape[-2]}, "
            f"got {source.value.shape[-2]}"
        )


def check_same_width(present: list[tuple[int, Source]], names: Sequence[str]) -> None:
    for i, source in present[1:]:
        first_index, first = present[0]
        if source.value.shape[-1] != first.value.shape[-1]:
            raise ValueError(
                f"{names[i]}value must have the head_dim_v of {names[first_index]}value, {first.value.shape[-1]}, "
                f"got {source.value.shape[-1]}"
            )


def check_float(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {tensor.dtype}")


def check_same_dtype(name: str, tensor: Tensor, like: Tensor, owner: str) -> None:
    """Equal as they will be computed: autocast may make different dtypes equal, and float64 beside others unequal."""
    if tensor.dtype != like.dtype and dtype_under_autocast(tensor) != dtype_under_autocast(like):
        raise TypeError(f"{name} must have {possessive(owner)} dtype {like.dtype}, got {tensor.dtype}")


def dtype_under_autocast(tensor: Tensor) -> torch.dtype:
    """The dtype that SDPA would compute in: autocast's, where it is enabled; float64 stays."""
    device = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return tensor.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def check_strided(name: str, tensor: Tensor) -> None:
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of layout {tensor.layout}")


def check_rank(name: str, tensor: Tensor) -> None:
    check_strided(name, tensor)
    if not 2 <= tensor.dim() <= 5:
        raise ValueError(f"{name} must have 2 to 5 dimensions, got {tensor.dim()} (shape {tuple(tensor.shape)})")


def check_device(name: str, tensor: Tensor, like: Tensor, owner: str = "query") -> None:
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {possessive(owner)} device {like.device}, got {tensor.device}")


def possessive(name: str) -> str:
    return f"{name}'" if name.endswith("s") else f"{name}'s"


def check_scale(scale: float | None, head_dim: int) -> float:
    if scale is None:
        return 1.0 / math.sqrt(head_dim) if head_dim > 0 else 1.0
    check_number("scale", scale, "a float or None")
    if not -math.inf < scale < math.inf:  # not isfinite: the scale may be a symbol of torch.compile
        raise ValueError(f"scale must be finite, got {scale}")
    return float(scale)


def check_softcap(softcap: float) -> float:
    check_number("softcap", softcap, "a float")
    if softcap > 1e30 and softcap < math.inf:
        return 0.0  # a cap that no score comes near caps nothing, and need not fit float32
    if not 0.0 <= softcap < math.inf:
        raise ValueError(f"softcap must be finite and >= 0 (0 = off), got {softcap}")
    return float(softcap)


def check_probability(name: str, value: float) -> float:
    check_number(name, value, "a float")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")
    return float(value)


def check_number(name: str, value: Any, wanted: str) -> None:
    # Real also takes numpy's numbers; a symbol of torch.compile is an int or a float here.
    if not isinstance(value, int | float) and (torch.compiler.is_compiling() or not isinstance(value, Real)):
        raise TypeError(f"{name} must be {wanted}, got {type(value).__name__}")
    if isinstance(value, int) and not -(2**1000) < value < 2**1000:
        raise ValueError(f"{name} must fit a float, got an integer of {value.bit_length()} bits")


def check_count(name: str, value: Any, least: int = 1) -> None:
    if not is_int(value):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_counts(**counts: Any) -> None:
    for name, value in counts.items():
        check_count(name, value)


def check_not_negative(name: str, value: Any) -> None:
    check_number(name, value, "a number")
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{name} must be 0 or more and finite, got {value}")


def check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")


def check_causal_align(causal_align: str) -> None:
    if causal_align not in CAUSAL_ALIGNMENTS:
        raise ValueError(f"causal_align must be one of {', '.join(CAUSAL_ALIGNMENTS)}, got {causal_align!r}")


def check_sink(sink: Tensor, num_heads: int, like: Tensor) -> None:
    check_tensor("sink", sink)
    if tuple(sink.shape) != (num_heads,):
        raise ValueError(f"sink must have shape (num_heads,) = ({num_heads},), got {tuple(sink.shape)}")
    check_float("sink", sink)
    check_device("sink", sink, like)


def check_window(window_size: tuple[int, int]) -> tuple[int, int]:
    if (
        not isinstance(window_size, list | tuple)
        or len(window_size) != 2
        or any(not is_int(w) or w < -1 for w in window_size)
    ):
        raise ValueError(f"window_size must be two ints >= -1 (left, right; -1 = open), got {window_size!r}")
    left, right = window_size
    return (int(min(left, FARTHEST)), int(min(right, FARTHEST)))


def is_int(value: Any) -> bool:
    """Also numpy's integers; no bool."""
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (not torch.compiler.is_compiling() and isinstance(value, Integral))


def check_seed(seed: Tensor, like: Tensor) -> None:
    check_tensor("dropout_seed", seed)
    if seed.numel() != 1 or seed.dtype != torch.int64:
        raise ValueError(
            f"dropout_seed must be a one-element int64 tensor, got {seed.dtype} of shape {tuple(seed.shape)}"
        )
    check_device("dropout_seed", seed, like)
