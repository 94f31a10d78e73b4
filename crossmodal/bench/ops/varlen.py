"""`attention_varlen` on packed sequences against padding them: SDPA and plain torch with a bool mask, and torch's own
jagged tensors.

The padded opponents start from padded tensors: what the padding itself costs them is not counted.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import crossmodal
from crossmodal.bench.case import SUBJECT, Answer, Case, Provider, function_of
from crossmodal.bench.ops._inputs import Inputs, Problem, real
from crossmodal.bench.ops._opponents import math_attention
from crossmodal.bench.shapes import Shape
from crossmodal.masks import key_padding

PROVIDERS = ("reference", "sdpa", "math", "nested", SUBJECT)


def build(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Case:
    attention_varlen = function_of(crossmodal, "attention_varlen")
    reference_varlen = function_of(crossmodal.reference, "attention_varlen")
    _, num_heads, seqlen_q, seqlen_k, head_dim = shape.size
    inputs = Inputs(dtype, seed)
    key_lengths = inputs.lengths(shape, seqlen_k)
    assert key_lengths is not None, "a ragged shape has shortest > 0"
    # Self-attention where the lengths agree; an image has all of its patches.
    query_lengths = key_lengths if seqlen_q == seqlen_k else torch.full_like(key_lengths, seqlen_q)
    padded = _padded(inputs, shape)
    real_q, real_k = real(query_lengths, seqlen_q), real(key_lengths, seqlen_k)
    assert real_q is not None and real_k is not None
    query, key, value, dout = (
        tensor.transpose(1, 2)[rows] for tensor, rows in zip(padded, (real_q, real_k, real_k, real_q), strict=True)
    )
    cu_seqlens_q, cu_seqlens_k = _offsets(query_lengths), _offsets(key_lengths)
    packing = (cu_seqlens_q, cu_seqlens_k, int(query_lengths.max()), int(key_lengths.max()))

    def by_reference(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return reference_varlen(query, key, value, *packing)

    def by_nested(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q = torch.nested.nested_tensor_from_jagged(query, cu_seqlens_q.long()).transpose(1, 2)
        k, v = (torch.nested.nested_tensor_from_jagged(t, cu_seqlens_k.long()).transpose(1, 2) for t in (key, value))
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).values()

    def by_crossmodal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attention_varlen(query, key, value, *packing)

    problem = Problem((query, key, value), dout, dtype)
    reference = problem.provider("reference", by_reference)
    return Case(
        "varlen",
        shape.name,
        shape.size,
        dtype,
        exact=problem.exact(by_reference),
        reference=reference,
        providers=(
            reference,
            *_on_padded(padded, real_q, real_k, dtype),
            problem.provider("nested", by_nested),
            problem.provider(SUBJECT, by_crossmodal),
        ),
        operations=4.0 * num_heads * head_dim * float((query_lengths * key_lengths).sum()),
    )


def _on_padded(padded: list[Tensor], real_q: Tensor, real_k: Tensor, dtype: torch.dtype) -> list[Provider]:
    mask = key_padding(real_k)

    def by_sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, key, value, mask)

    def by_math(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return math_attention(query, key, value, mask)

    def packed(answer: Answer) -> Answer:
        rows = {"out": real_q, "grad0": real_q, "grad1": real_k, "grad2": real_k}
        return {name: tensor.transpose(1, 2)[rows[name]] for name, tensor in answer.items()}

    *tensors, dout = padded
    # Padded queries get no gradient, as their answers are not used.
    problem = Problem(tensors, dout * real_q[:, None, :, None], dtype)
    return [problem.provider(name, call, common=packed) for name, call in (("sdpa", by_sdpa), ("math", by_math))]


def _padded(inputs: Inputs, shape: Shape) -> list[Tensor]:
    batch, num_heads, seqlen_q, seqlen_k, head_dim = shape.size
    return [inputs.normal(batch, num_heads, n, head_dim) for n in (seqlen_q, seqlen_k, seqlen_k, seqlen_q)]


def _offsets(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
