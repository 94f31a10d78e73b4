"""`associate` against plain torch that makes the same summary of the weights, which it has to store in full."""

import torch
from torch import Tensor

import crossmodal
from crossmodal.bench.case import PASSES, SUBJECT, Case
from crossmodal.bench.ops._inputs import Inputs, Problem
from crossmodal.bench.shapes import TOPK, Shape

PROVIDERS = ("reference", "math", SUBJECT)


def build(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Case:
    batch, num_heads, seqlen_q, seqlen_k, head_dim = shape.size
    inputs = Inputs(dtype, seed)
    query = inputs.normal(batch, num_heads, seqlen_q, head_dim)
    key = inputs.normal(batch, num_heads, seqlen_k, head_dim)
    dout = inputs.normal(*_summary_size(shape))
    asked = {"reduce": shape.reduce} if _is_reduction(shape) else {"topk": TOPK}

    def by_reference(query: Tensor, key: Tensor) -> Tensor:
        return _first(crossmodal.reference.associate(query, key, **asked))

    def by_math(query: Tensor, key: Tensor) -> Tensor:
        # Scores in the dtype of the input, softmax and summary in float32: what is summed over hundreds of keys or
        # queries has no right answer in half precision.
        scores = (query * head_dim**-0.5) @ key.transpose(-2, -1)
        return _summary(torch.softmax(scores, dim=-1, dtype=torch.float32), shape.reduce)

    def by_crossmodal(query: Tensor, key: Tensor) -> Tensor:
        return _first(crossmodal.associate(query, key, **asked))

    problem = Problem((query, key), dout, dtype, out_dtype=torch.float32)
    passes = PASSES if _is_reduction(shape) else ("forward",)
    reference = problem.provider("reference", by_reference, passes=passes)
    return Case(
        "associate",
        shape.name,
        shape.size,
        dtype,
        exact=problem.exact(by_reference, passes=passes),
        reference=reference,
        providers=(
            reference,
            problem.provider("math", by_math, passes=passes),
            problem.provider(SUBJECT, by_crossmodal, passes=passes),
        ),
        operations=shape.dense_operations / 2,
        backward_factor=3.0,  # the scores once more, then the gradients of query and key
        passes=passes,
    )


def _is_reduction(shape: Shape) -> bool:
    return not shape.reduce.startswith("top")


def _summary_size(shape: Shape) -> tuple[int, ...]:
    batch, num_heads, seqlen_q, seqlen_k, _ = shape.size
    return {
        "heads": (batch, seqlen_q, seqlen_k),
        "keys": (batch, num_heads, seqlen_k),
        "entropy": (batch, num_heads, seqlen_q),
    }.get(shape.reduce, (batch, num_heads, seqlen_q, TOPK))


def _summary(weights: Tensor, reduce: str) -> Tensor:
    if reduce == "heads":
        return weights.mean(dim=1)
    if reduce == "keys":
        return weights.sum(dim=2)
    if reduce == "entropy":
        return torch.special.entr(weights).sum(dim=-1)
    return weights.topk(TOPK, dim=-1).values


def _first(result: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """Of strongest links the weights: equal weights leave a choice of indices."""
    return result if isinstance(result, Tensor) else result[0]
