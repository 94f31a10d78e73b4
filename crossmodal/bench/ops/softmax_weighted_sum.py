"""`softmax_weighted_sum` against softmax, then a product, with the weights stored between."""

import torch
from torch import Tensor

import crossmodal
from crossmodal.bench.case import SUBJECT, Case, function_of
from crossmodal.bench.ops._inputs import Inputs, Problem, real, real_share
from crossmodal.bench.shapes import Shape
from crossmodal.masks import key_padding

PROVIDERS = ("reference", "math", "bmm", SUBJECT)


def build(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Case:
    softmax_weighted_sum = function_of(crossmodal, "softmax_weighted_sum")
    reference_softmax_weighted_sum = function_of(crossmodal.reference, "softmax_weighted_sum")
    batch, num_heads, seqlen_q, seqlen_k, head_dim = shape.size
    inputs = Inputs(dtype, seed)
    scores = inputs.normal(batch, num_heads, seqlen_q, seqlen_k)
    values = inputs.normal(batch, num_heads, seqlen_k, head_dim)
    dout = inputs.normal(batch, num_heads, seqlen_q, head_dim)
    lengths = inputs.lengths(shape, seqlen_k)
    key_mask = real(lengths, seqlen_k)
    hidden = None if key_mask is None else ~key_padding(key_mask)

    def weights_of(scores: Tensor) -> Tensor:
        if hidden is not None:
            scores = scores.masked_fill(hidden, float("-inf"))
        return torch.softmax(scores, dim=-1)

    def by_reference(scores: Tensor, values: Tensor) -> Tensor:
        return reference_softmax_weighted_sum(scores, values, lengths=lengths)

    def by_math(scores: Tensor, values: Tensor) -> Tensor:
        return weights_of(scores) @ values

    def by_bmm(scores: Tensor, values: Tensor) -> Tensor:
        return torch.bmm(weights_of(scores).flatten(0, 1), values.flatten(0, 1)).view(dout.shape)

    def by_crossmodal(scores: Tensor, values: Tensor) -> Tensor:
        return softmax_weighted_sum(scores, values, lengths=lengths)

    problem = Problem((scores, values), dout, dtype)
    reference = problem.provider("reference", by_reference)
    return Case(
        "softmax_weighted_sum",
        shape.name,
        shape.size,
        dtype,
        exact=problem.exact(by_reference),
        reference=reference,
        providers=(
            reference,
            problem.provider("math", by_math),
            problem.provider("bmm", by_bmm),
            problem.provider(SUBJECT, by_crossmodal),
        ),
        operations=shape.dense_operations / 2 * real_share(lengths, seqlen_k),
        backward_factor=2.0,
    )
