"""What a call costs beside its arithmetic: attention of four tokens, where there is next to none."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import crossmodal
from crossmodal.bench.case import SUBJECT, Case
from crossmodal.bench.ops._inputs import Inputs, Problem
from crossmodal.bench.ops._opponents import math_attention
from crossmodal.bench.shapes import Shape

PROVIDERS = ("reference", "sdpa", "math", SUBJECT)


def build(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Case:
    batch, num_heads, seqlen_q, seqlen_k, head_dim = shape.size
    inputs = Inputs(dtype, seed)
    query, key, value, dout = (
        inputs.normal(batch, num_heads, n, head_dim) for n in (seqlen_q, seqlen_k, seqlen_k, seqlen_q)
    )
    # Called as they are: a wrapper that names or checks arguments would be a good part of what is measured.
    problem = Problem((query, key, value), dout, dtype)
    reference = problem.provider("reference", _untyped(crossmodal.reference.attention))
    return Case(
        "overhead",
        shape.name,
        shape.size,
        dtype,
        exact=problem.exact(_untyped(crossmodal.reference.attention)),
        reference=reference,
        providers=(
            reference,
            problem.provider("sdpa", scaled_dot_product_attention),
            problem.provider("math", math_attention),
            problem.provider(SUBJECT, _untyped(crossmodal.attention)),
        ),
        operations=shape.dense_operations,
    )


def _untyped(function: Any) -> Callable[..., Tensor]:
    """attention returns a tensor as long as no lse is asked for, which its type does not tell."""
    return function
