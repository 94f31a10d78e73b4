"""Tensors as arrays of a precision of choice, and back from what was broadcast or repeated."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray


class Exact(NamedTuple):
    value: Array
    # The same sums over absolute values: rounding is in proportion to them, however much cancels.
    magnitude: Array


def wider_than(dtype: torch.dtype) -> type:
    """The precision at which results in `dtype` count as exact."""
    return np.longdouble if dtype == torch.float64 else np.float64


def array(tensor: Tensor, precision: type) -> Array:
    tensor = tensor.detach()
    return tensor.double().numpy().astype(precision) if tensor.is_floating_point() else tensor.numpy()


def within(lengths: Tensor | None, batch: int, size: int) -> Array:
    """(batch, size) bool: positions before the sample's length."""
    ends = np.full(batch, size) if lengths is None else lengths.numpy()
    return np.arange(size) < ends[:, None]


def reduced(gradient: Array, shape: tuple[int, ...]) -> Array:
    """The gradient of what was broadcast from `shape`."""
    extra = gradient.ndim - len(shape)
    gradient = gradient.sum(axis=tuple(range(extra)))
    axes = tuple(d for d, size in enumerate(shape) if size == 1 and gradient.shape[d] != 1)
    return gradient.sum(axis=axes, keepdims=True)


def repeated_heads(tensor: Array, num_heads: int) -> Array:
    """Grouped-query attention: query head h reads key head h // (num_heads / num_heads_k)."""
    return tensor if tensor.shape[1] == num_heads else tensor.repeat(num_heads // tensor.shape[1], axis=1)


def summed_heads(gradient: Array, num_heads_k: int) -> Array:
    """The gradient of what `repeated_heads` repeated."""
    batch, num_heads, *rest = gradient.shape
    if num_heads == num_heads_k:
        return gradient
    return gradient.reshape(batch, num_heads_k, num_heads // num_heads_k, *rest).sum(axis=2)
