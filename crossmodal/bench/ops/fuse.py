"""`fuse` against concatenating the sources and attending over the result.

`sdpa_ready` starts from keys and values that lie concatenated already. That is not the problem, hence it is no opponent
that speed-ups are stated against, but it tells what the concatenation costs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import crossmodal
from crossmodal import Source
from crossmodal.bench.case import SUBJECT, Answer, Case, Provider
from crossmodal.bench.ops._inputs import Inputs, Problem, real, real_share
from crossmodal.bench.ops._opponents import math_attention
from crossmodal.bench.shapes import Shape
from crossmodal.masks import key_padding

PROVIDERS = ("reference", "sdpa", "math", "sdpa_ready", SUBJECT)


def build(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Case:
    batch, num_heads, seqlen_q, seqlen_k, head_dim = shape.size
    inputs = Inputs(dtype, seed)
    query, dout = (inputs.normal(batch, num_heads, seqlen_q, head_dim) for _ in range(2))
    tensors = [inputs.normal(batch, num_heads, n, head_dim) for n in shape.seqlens_k for _ in ("key", "value")]
    lengths = [inputs.lengths(shape, n) for n in shape.seqlens_k]
    masks = [real(lengths[i], n) for i, n in enumerate(shape.seqlens_k)]
    mask = key_padding(torch.cat([m for m in masks if m is not None], dim=1)) if shape.shortest else None

    def sources(tensors: Sequence[Tensor]) -> list[Source]:
        return [Source(key, value, n) for key, value, n in zip(tensors[0::2], tensors[1::2], lengths, strict=True)]

    def by_reference(query: Tensor, *tensors: Tensor) -> Tensor:
        return crossmodal.reference.fuse(query, sources(tensors)).out

    def by_sdpa(query: Tensor, *tensors: Tensor) -> Tensor:
        key, value = torch.cat(tensors[0::2], dim=2), torch.cat(tensors[1::2], dim=2)
        return scaled_dot_product_attention(query, key, value, mask)

    def by_math(query: Tensor, *tensors: Tensor) -> Tensor:
        key, value = torch.cat(tensors[0::2], dim=2), torch.cat(tensors[1::2], dim=2)
        return math_attention(query, key, value, mask)

    def by_crossmodal(query: Tensor, *tensors: Tensor) -> Tensor:
        return crossmodal.fuse(query, sources(tensors)).out

    problem = Problem((query, *tensors), dout, dtype)
    reference = problem.provider("reference", by_reference)
    share = sum(n * real_share(lengths[i], n) for i, n in enumerate(shape.seqlens_k)) / seqlen_k
    return Case(
        "fuse",
        shape.name,
        shape.size,
        dtype,
        exact=problem.exact(by_reference),
        reference=reference,
        providers=(
            reference,
            problem.provider("sdpa", by_sdpa),
            problem.provider("math", by_math),
            _ready(query, tensors, dout, mask, dtype),
            problem.provider(SUBJECT, by_crossmodal),
        ),
        operations=shape.dense_operations * share,
    )


def _ready(query: Tensor, tensors: Sequence[Tensor], dout: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Provider:
    sizes = [key.shape[2] for key in tensors[0::2]]
    joined = (query, torch.cat(list(tensors[0::2]), dim=2), torch.cat(list(tensors[1::2]), dim=2))

    def by_sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, key, value, mask)

    def per_source(answer: Answer) -> Answer:
        keys, values = (answer[name].split(sizes, dim=2) for name in ("grad1", "grad2"))
        gradients = [answer["grad0"], *(part for pair in zip(keys, values, strict=True) for part in pair)]
        return {"out": answer["out"], **{f"grad{i}": gradient for i, gradient in enumerate(gradients)}}

    return Problem(joined, dout, dtype).provider("sdpa_ready", by_sdpa, common=per_source, is_opponent=False)
