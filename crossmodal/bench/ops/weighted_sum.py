"""`weighted_sum` against `torch.bmm`, the product that it is."""

import torch
from torch import Tensor

import crossmodal
from crossmodal.bench.case import SUBJECT, Case
from crossmodal.bench.ops._inputs import Inputs, Problem, real, real_share
from crossmodal.bench.shapes import Shape
from crossmodal.masks import key_padding

PROVIDERS = ("reference", "bmm", SUBJECT)


def build(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Case:
    batch, num_heads, seqlen_q, seqlen_k, head_dim = shape.size
    inputs = Inputs(dtype, seed)
    weights = inputs.weights(batch, num_heads, seqlen_q, seqlen_k)
    values = inputs.normal(batch, num_heads, seqlen_k, head_dim)
    dout = inputs.normal(batch, num_heads, seqlen_q, head_dim)
    lengths = inputs.lengths(shape, seqlen_k)
    key_mask = real(lengths, seqlen_k)
    hidden = None if key_mask is None else ~key_padding(key_mask)

    def by_reference(weights: Tensor, values: Tensor) -> Tensor:
        return crossmodal.reference.weighted_sum(weights, values, lengths=lengths)

    def by_bmm(weights: Tensor, values: Tensor) -> Tensor:
        if hidden is not None:
            weights = weights.masked_fill(hidden, 0.0)
        return torch.bmm(weights.flatten(0, 1), values.flatten(0, 1)).view(dout.shape)

    def by_crossmodal(weights: Tensor, values: Tensor) -> Tensor:
        return crossmodal.weighted_sum(weights, values, lengths=lengths)

    problem = Problem((weights, values), dout, dtype)
    reference = problem.provider("reference", by_reference)
    return Case(
        "weighted_sum",
        shape.name,
        shape.size,
        dtype,
        exact=problem.exact(by_reference),
        reference=reference,
        providers=(reference, problem.provider("bmm", by_bmm), problem.provider(SUBJECT, by_crossmodal)),
        operations=shape.dense_operations / 2 * real_share(lengths, seqlen_k),
        backward_factor=2.0,
    )
