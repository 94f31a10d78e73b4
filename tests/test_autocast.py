"""Autocast as SDPA has it: query, key and value are cast; sinks, float masks and lse stay float32."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

import crossmodal
from crossmodal import Source, dispatch

Q, K, V = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 6)
SINK, MASK, SCORES = torch.randn(4), torch.randn(4, 5, 7), torch.randn(2, 4, 5, 7)
ENDS_Q, ENDS_K = torch.tensor([0, 4, 10], dtype=torch.int32), torch.tensor([0, 9, 14], dtype=torch.int32)


def packed(q, k, v):
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))
    return crossmodal.attention_varlen(q, k, v, ENDS_Q, ENDS_K, 6, 9, sink=SINK, return_lse=True)


CALLS = {  # what is cast to half precision first in the call on the right
    "attention": lambda q, k, v, s: crossmodal.attention(q, k, v, MASK, sink=SINK, return_lse=True),
    "fuse": lambda q, k, v, s: tuple(
        crossmodal.fuse(
            q, [Source(k, v, bias=MASK), Source(k, v, mask=MASK > 0)], sink=SINK, return_lse=True, return_mass=True
        )
    ),
    "attention_varlen": lambda q, k, v, s: packed(q, k, v),
    "weighted_sum": lambda q, k, v, s: (crossmodal.weighted_sum(s, v),),
    "softmax_weighted_sum": lambda q, k, v, s: (crossmodal.softmax_weighted_sum(s, v, scale=0.7),),
    "associate": lambda q, k, v, s: (crossmodal.associate(q, k, attn_mask=MASK, sink=SINK),),
}


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_is_the_call_on_cast_operands_with_all_else_as_it_was(name, half):
    with torch.autocast("cpu", half):
        got = CALLS[name](Q, K, V, SCORES)
    wanted = CALLS[name](*(t.to(half) for t in (Q, K, V, SCORES)))
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("name", CALLS)
def test_float64_is_left_alone(name):
    operands = [t.double() for t in (Q, K, V, SCORES)]
    with torch.autocast("cpu", torch.bfloat16):
        got = CALLS[name](*operands)
    for a, b in zip(got, CALLS[name](*operands), strict=True):
        assert a.dtype == torch.float64 and torch.equal(a, b)


def test_casts_to_the_dtype_that_sdpa_casts_to():
    with torch.autocast("cpu", torch.float16):
        assert crossmodal.attention(Q, K, V).dtype == F.scaled_dot_product_attention(Q, K, V).dtype


def test_operands_of_different_dtypes_meet_in_that_of_autocast():
    """What a projection under autocast gives, beside a tensor that no layer has touched."""
    with torch.autocast("cpu", torch.bfloat16):
        got = crossmodal.attention(Q.bfloat16(), K, V.half())
    assert torch.equal(got, crossmodal.attention(Q.bfloat16(), K.bfloat16(), V.half().bfloat16()))


def test_gradients_come_back_in_the_dtype_of_their_tensors():
    leaves = [t.clone().requires_grad_() for t in (Q, K, V, MASK, SINK)]
    q, k, v, mask, sink = leaves
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = crossmodal.attention(q, k, v, mask, sink=sink, return_lse=True)
    for leaf, gradient in zip(leaves, torch.autograd.grad(out.float().sum() + lse.sum(), leaves), strict=True):
        assert gradient.dtype == torch.float32 and gradient.shape == leaf.shape


def test_sink_and_float_mask_lose_no_digit():
    """1 + 2^-12 has no place in bfloat16: lse shows whether it was rounded on the way."""
    number = 1 + 2.0**-12
    zero, far = torch.zeros(1, 1, 1, 4), torch.tensor([-1e9])
    with torch.autocast("cpu", torch.bfloat16):
        lse = crossmodal.attention(zero, zero, zero, torch.full((1, 1), number), sink=far, return_lse=True)[1]
        empty = torch.zeros(1, dtype=torch.int64)
        sunk = crossmodal.attention(zero, zero, zero, key_lengths=empty, sink=torch.tensor([number]), return_lse=True)[
            1
        ]
    assert lse.item() == number and sunk.item() == number


@pytest.fixture
def autocast_of_cuda():
    """What torch.autocast("cuda") does, which refuses where there is no GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    yield
    torch.set_autocast_enabled("cuda", before[0])
    torch.set_autocast_dtype("cuda", before[1])


def test_autocast_of_cuda_casts_cuda_tensors_alone(autocast_of_cuda, monkeypatch):
    """Shapes and dtypes: no GPU is asked."""
    monkeypatch.setattr(dispatch, "HAS_CUDA_KERNELS", True)
    with FakeTensorMode():
        q, k = torch.empty(2, 4, 5, 8, device="cuda"), torch.empty(2, 4, 7, 8, device="cuda")
        sink, mask = torch.empty(4, device="cuda"), torch.empty(5, 7, device="cuda")
        out, lse = crossmodal.attention(q, k, k, mask, sink=sink, return_lse=True)
        assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32 and out.is_cuda
        fused = crossmodal.fuse(q, [Source(k, k), Source(k, k)], return_mass=True)
        assert fused.out.dtype == torch.bfloat16 and fused.mass.dtype == torch.float32
        assert crossmodal.attention(q.double(), k.double(), k.double()).dtype == torch.float64
    assert crossmodal.attention(*[torch.randn(2, 4, 5, 8)] * 3).dtype == torch.float32


def test_reference_does_not_overflow_where_kernels_do_not():
    """Autocast would make float16 of products that are computed in float32 to be safe from it."""
    q = torch.full((1, 1, 3, 64), 60.0)
    with torch.autocast("cpu", torch.float16):
        got, wanted = (f(q, q, q, return_lse=True) for f in (crossmodal.reference.attention, crossmodal.attention))
        weights = crossmodal.reference.associate(q, q)
    for a, b in zip(got, wanted, strict=True):
        assert a.isfinite().all() and a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)
    assert weights.isfinite().all()


def test_strongest_links_do_not_overflow_when_differentiated_twice():
    q, k = (60 * torch.randn(1, 1, rows, 256).sign() for rows in (3, 5))
    k[:, :, :3] = q  # products far above the largest float16
    q.requires_grad_()
    with torch.autocast("cpu", torch.float16):
        weights, _ = crossmodal.associate(q, k, topk=2, scale=1e-6)
        loss = 1e4 * weights.square().sum()
        got, wanted = (torch.autograd.grad(loss, q, retain_graph=True, create_graph=c)[0] for c in (True, False))
    torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-2 * wanted.abs().max().item())
