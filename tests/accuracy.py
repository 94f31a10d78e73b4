"""Runs a problem through the operator, the reference in several orders of summation, and the exact formulas."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import crossmodal
from crossmodal import reference
from tests.calls import Results, call_links, call_of
from tests.exact import (
    Exact,
    ExactAssociation,
    ExactFusion,
    ExactProblem,
    ExactSoftmaxWeightedSum,
    ExactVarlen,
    ExactWeightedSum,
    wider_than,
)
from tests.problems import Association, FeatureOrder, Fusion, Varlen, WeightedSum
from tests.tolerance import allowed_error, assert_as_accurate, eps_of, judge_by_orders

Problem = Fusion | Varlen | WeightedSum | Association
OUTPUTS = ("out", "lse", "mass", "associated")


def check(problem: Problem) -> None:
    """Outputs and every gradient that the problem asks for obey the two-reference rule."""
    tensors, call = built(problem), call_of(problem)
    got = call(crossmodal, problem, tensors)
    links = got.pop("indices", None)
    if links is not None:
        # Weights that differ by rounding only may come in any order; references answer for the links that were chosen.
        call = partial(call_links, indices=links)
    exact = exact_of(problem, tensors, wider_than(dtype_of(problem)), links)
    wanted = with_gradients(exact, problem, tensors, got)

    def judge(references: list[Results]) -> None:
        for name, result in got.items():
            # An output is as fine as its own dtype; a gradient has also passed through factors in that of the operands.
            eps = eps_of(result.dtype) if name in OUTPUTS else eps_of(dtype_of(problem), result.dtype)
            exactly = wanted[name]
            assert_as_accurate(name, result, [r[name] for r in references], exactly.value, eps, exactly.magnitude)
        if links is not None:
            assert isinstance(exact, ExactAssociation)
            _check_links(links, got["associated"], references, exact)

    def in_order(number: int) -> Results:
        order = FeatureOrder(number)
        return order.undo(call(reference, problem, tensors.reordered(order)))

    judge_by_orders(judge, call(reference, problem, tensors), in_order)


def check_rounded(problem: Problem, eps: float) -> None:
    """The second term of the rule alone, for products whose factors are rounded to a precision of their own."""
    tensors, call = built(problem), call_of(problem)
    got = call(crossmodal, problem, tensors)
    wanted = with_gradients(exact_of(problem, tensors, np.float64), problem, tensors, got)
    for name, result in got.items():
        assert_as_accurate(name, result, [], wanted[name].value, eps, wanted[name].magnitude)


def check_reference(problem: Problem) -> None:
    """The reference has the same formulas: in float64 it agrees with them beyond what float32 could tell apart."""
    problem = in_float64(problem)
    tensors = built(problem)
    got = call_of(problem)(reference, problem, tensors)
    links = got.pop("indices", None)
    exact = exact_of(problem, tensors, np.float64, links)
    wanted = with_gradients(exact, problem, tensors, got)
    for name, result in got.items():
        eps = eps_of(torch.float32, result.dtype)
        assert_as_accurate(name, result, [], wanted[name].value, eps, wanted[name].magnitude)
    if links is not None:
        assert isinstance(exact, ExactAssociation)
        _check_links(links, got["associated"], [], exact)


def built(problem: Problem) -> Any:
    return problem.fusion.build() if isinstance(problem, Association) else problem.build()


def dtype_of(problem: Problem) -> torch.dtype:
    return problem.fusion.dtype if isinstance(problem, Association) else problem.dtype


def in_float64(problem: Any) -> Any:
    if isinstance(problem, Association):
        return replace(problem, fusion=in_float64(problem.fusion))
    return replace(problem, dtype=torch.float64)


def exact_of(problem: Problem, tensors: Any, precision: type, links: Tensor | None = None) -> ExactProblem:
    if isinstance(problem, Association):
        fusion = exact_of(problem.fusion, tensors, precision)
        assert isinstance(fusion, ExactFusion)
        return ExactAssociation(fusion, problem.reduce, links)
    if isinstance(problem, WeightedSum):
        arguments = (tensors.weights, tensors.values, tensors.lengths, tensors.mask)
        if problem.softmax:
            return ExactSoftmaxWeightedSum(*arguments, scale=problem.scale_in_full, precision=precision)
        return ExactWeightedSum(*arguments, precision=precision)
    options: dict[str, Any] = {
        "scale": problem.scale_in_full,
        "is_causal": problem.is_causal,
        "causal_align": problem.causal_align,
        "window_size": problem.window_size,
        "softcap": problem.softcap,
        "sink": tensors.sink,
        "dropout_p": problem.dropout_p,
        "dropout_seed": problem.dropout_seed,
        "precision": precision,
    }
    if isinstance(problem, Varlen):
        offsets = (tensors.cu_seqlens_q, tensors.cu_seqlens_k)
        return ExactVarlen(tensors.query, tensors.key, tensors.value, *offsets, **options)
    return ExactFusion(tensors.query, tensors.sources, query_lengths=tensors.query_lengths, **options)


def with_gradients(exact: ExactProblem, problem: Problem, tensors: Any, got: Results) -> dict[str, Exact]:
    if isinstance(problem, Association):
        cotangents = {"associated": problem.cotangent(got["associated"])}
    else:
        cotangents = tensors.cotangents
    return {**exact.results, **exact.backward(**{f"d{name}": c for name, c in cotangents.items()})}


def _check_links(links: Tensor, weights: Tensor, references: list[Results], exact: ExactAssociation) -> None:
    """The links of `topk` are the strongest, but for rounding."""
    everything, deep = exact.weights
    _check_indices(links, weights, everything, exact.fusion.seen)
    if links.numel() == 0 or everything.shape[-1] == 0:
        return
    k = links.shape[-1]
    best = -np.sort(-everything, axis=-1)[..., :k]
    best = np.pad(best, [(0, 0)] * 3 + [(0, k - best.shape[-1])])
    eps = eps_of(weights.dtype, *([] if references else [torch.float32]))
    allowed = allowed_error(weights.dtype, [r["all weights"] for r in references], everything, eps, deep)
    # Once for the k-th of the computed weights beside the k-th of the exact ones, once for the weight that it is of.
    off = np.abs(exact.results["associated"].value - best).max()
    assert off <= 2 * allowed, f"indices: weight off by {off:.3g} from the k-th strongest, allowed {2 * allowed:.3g}"


def _check_indices(index: Tensor, weights: Tensor, exact: np.ndarray, seen: np.ndarray) -> None:
    total = exact.shape[-1]
    assert index.dtype == torch.int64
    assert ((index >= -1) & (index < total)).all(), "indices: outside the keys"
    assert torch.equal(index == -1, weights == 0), "indices: -1 is where there is no weight"
    assert (weights[..., 1:] <= weights[..., :-1]).all(), "weights: strongest first"
    numbered = torch.where(index >= 0, index, -1 - torch.arange(index.shape[-1])).sort(dim=-1).values
    assert (numbered[..., 1:] != numbered[..., :-1]).all(), "indices: each key once"
    # Below the smallest normal number a weight may be zero. 2^10: scores of half precision may be off by several units,
    # which is a factor of exp(7).
    surely = (exact > 2.0**10 * torch.finfo(weights.dtype).smallest_normal).sum(axis=-1)
    found, k = (index >= 0).sum(dim=-1).numpy(), index.shape[-1]
    assert (found >= np.minimum(k, surely)).all(), "indices: -1 although keys have weight"
    assert (found <= np.minimum(k, seen.sum(axis=-1))).all(), "indices: a key that is hidden"
