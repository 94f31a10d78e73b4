"""`attention` against SDPA, FlexAttention and plain torch; where keys are padded all opponents get a bool mask."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import crossmodal
from crossmodal.bench.case import SUBJECT, Case
from crossmodal.bench.ops._inputs import Inputs, Problem, real, real_share
from crossmodal.bench.ops._opponents import flex, math_attention
from crossmodal.bench.shapes import Shape
from crossmodal.masks import key_padding

PROVIDERS = ("reference", "sdpa", "math", "flex", SUBJECT)


def build(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Case:
    batch, num_heads, seqlen_q, seqlen_k, head_dim = shape.size
    inputs = Inputs(dtype, seed)
    query, key, value, dout = (
        inputs.normal(batch, num_heads, n, head_dim) for n in (seqlen_q, seqlen_k, seqlen_k, seqlen_q)
    )
    lengths = inputs.lengths(shape, seqlen_k)
    key_mask = real(lengths, seqlen_k)
    mask = None if key_mask is None else key_padding(key_mask)

    def by_reference(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = crossmodal.reference.attention(query, key, value, key_lengths=lengths)
        assert isinstance(out, Tensor)
        return out

    def by_sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, key, value, mask)

    def by_math(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return math_attention(query, key, value, mask)

    def by_crossmodal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = crossmodal.attention(query, key, value, key_lengths=lengths)
        assert isinstance(out, Tensor)
        return out

    problem = Problem((query, key, value), dout, dtype)
    reference = problem.provider("reference", by_reference)
    return Case(
        "attention",
        shape.name,
        shape.size,
        dtype,
        exact=problem.exact(by_reference),
        reference=reference,
        providers=(
            reference,
            problem.provider("sdpa", by_sdpa),
            problem.provider("math", by_math),
            problem.provider("flex", flex(key_mask, seqlen_q), passes=("forward",)),  # torch has no backward on CPU
            problem.provider(SUBJECT, by_crossmodal),
        ),
        operations=shape.dense_operations * real_share(lengths, seqlen_k),
    )
