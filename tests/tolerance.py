"""The two-reference rule: as accurate as torch in the same dtype, both measured against the exact result.

    max|out - exact| <= 2 * max|same-dtype reference - exact| + 4 * eps * max|exact|

After FlashAttention's tests (Dao et al., 2022). In random problems, often of one element, chance and cancellation need
a fairer form of both terms: the reference's error is the largest one of several evaluations that add in different
orders, and max|exact| gives way to the sum of absolute values, `magnitude`. No constant was chosen to make a test pass.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Two orders of summation tell how far plain torch is off, but for problems in which both were lucky: a gradient of two
# keys, say, whose error is that of two scores. Those are judged by more.
ORDERS, MORE_ORDERS = 1, 7


def judge_by_orders(judge: Callable[[list[Any]], None], first: Any, in_order: Callable[[int], Any]) -> None:
    """``judge`` with the reference's results in the order given, ``first``, and in others, by number."""
    references = [first, *map(in_order, range(ORDERS))]
    try:
        judge(references)
    except AssertionError:
        judge(references + [in_order(number) for number in range(ORDERS, ORDERS + MORE_ORDERS)])


def assert_as_accurate(
    name: str,
    got: Tensor,
    references: Sequence[Tensor],
    exact: np.ndarray,
    eps: float,
    magnitude: np.ndarray | None = None,
) -> None:
    """`got` obeys the rule; where the exact result is -inf (an lse of nothing) it is -inf."""
    assert tuple(got.shape) == exact.shape, name
    assert all(got.dtype == reference.dtype for reference in references), name
    if got.numel() == 0:
        return
    hidden = np.isneginf(exact)
    found = _wide(got)
    assert np.array_equal(np.isneginf(found), hidden), f"{name}: -inf not where it belongs"
    error = np.abs(np.where(hidden, 0, found) - np.where(hidden, 0, exact)).max()
    allowed = allowed_error(got.dtype, references, exact, eps, magnitude)
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"  # also false for NaN


def allowed_error(
    dtype: torch.dtype,
    references: Sequence[Tensor],
    exact: np.ndarray,
    eps: float,
    magnitude: np.ndarray | None = None,
) -> float:
    """The right side of the rule; without references its second term alone."""
    hidden = np.isneginf(exact)
    exact = np.where(hidden, 0, exact)
    reference = max((np.abs(np.where(hidden, 0, _wide(r)) - exact).max() for r in references), default=0.0)
    largest = np.abs(exact if magnitude is None else magnitude).max()
    # Below the smallest normal number, which float16 reaches soon, numbers lie no closer together.
    return 2 * reference + 4 * eps * max(largest, torch.finfo(dtype).smallest_normal)


def eps_of(*dtypes: torch.dtype) -> float:
    """The coarsest of them decides."""
    return max(torch.finfo(dtype).eps for dtype in dtypes)


def _wide(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy().astype(np.longdouble)
