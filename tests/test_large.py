"""Tensors of more than 2^31 elements: offsets that no int32 holds. Of their memory few pages are ever touched."""

import pytest
import torch

import crossmodal
from crossmodal import Source
from tests.tolerance import assert_as_accurate, eps_of

pytestmark = pytest.mark.slow
MANY = 2**31


def far_apart(shape: tuple[int, ...], dim: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Random numbers, the last of them along `dim` more than 2^31 elements behind the first."""
    step = -(-MANY // (shape[dim] - 1)) + 64
    strides = list(torch.empty(shape, device="meta").stride())
    strides[dim] = step
    storage = torch.empty(step * (shape[dim] - 1) + max(torch.empty(shape, device="meta").numel(), 1), dtype=dtype)
    tensor = storage.as_strided(shape, strides)
    return tensor.copy_(torch.randn(shape))


@pytest.mark.parametrize("dim", [0, 1, 2], ids=["samples", "heads", "rows"])
@pytest.mark.parametrize("seqlen_q", [2, 33], ids=["few_queries", "many_queries"])
def test_offsets_of_query_key_value_and_dout_need_64_bits(isa, seqlen_q, dim):
    tensors = [far_apart((2, 2, n, 16), dim) for n in (seqlen_q, 9, 9, seqlen_q)]

    def run(q, k, v, dout):
        leaves = [t.detach().requires_grad_() for t in (q, k, v)]
        out = crossmodal.attention(*leaves)
        return [out, *torch.autograd.grad(out, leaves, dout)]

    got, wanted = run(*tensors), run(*(t.contiguous() for t in tensors))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_offsets_of_packed_rows_need_64_bits(isa):
    q, k, v = (far_apart((n, 2, 16), 0) for n in (9, 12, 12))
    ends = [torch.tensor(e, dtype=torch.int32) for e in ([0, 4, 9], [0, 5, 12])]
    wanted = crossmodal.attention_varlen(*(t.contiguous() for t in (q, k, v)), *ends, 5, 7)
    assert torch.equal(crossmodal.attention_varlen(q, k, v, *ends, 5, 7), wanted)


def test_mask_of_more_elements_gives_what_its_visible_part_gives(isa):
    rows, keys = 65_536, 32_800
    assert rows * keys > MANY
    mask = torch.empty(rows, keys, dtype=torch.bool)
    mask[:, :8] = torch.rand(rows, 8) < 0.7
    q, k = torch.randn(1, 1, rows, 8), torch.randn(1, 1, keys, 8)
    got = crossmodal.attention(q, k, k, mask, key_lengths=torch.tensor([8]))
    near = k[:, :, :8].contiguous()
    assert torch.equal(got, crossmodal.attention(q, near, near, mask[:, :8].contiguous()))


@pytest.mark.parametrize(
    "function", [crossmodal.weighted_sum, crossmodal.softmax_weighted_sum], ids=lambda f: f.__name__
)
def test_weights_of_more_elements_give_what_their_visible_part_gives(isa, function):
    rows, keys = 65_536, 32_800
    weights = torch.empty(rows, keys, dtype=torch.bfloat16)
    weights[:, :8] = torch.rand(rows, 8)
    values = torch.randn(keys, 8).bfloat16()
    got = function(weights[None], values[None], lengths=torch.tensor([8]))
    assert torch.equal(got[0], function(weights[:, :8].contiguous(), values[:8].contiguous()))


def test_expanded_keys_of_more_elements_are_summed_like_any(isa):
    """2^31 elements of one stored row: equal keys weigh the same, whatever their number."""
    keys = MANY // 64 + 5
    row = torch.randn(1, 1, 1, 64)
    key, value = row.expand(1, 1, keys, 64), row[..., :1].expand(1, 1, keys, 1)
    assert key.numel() > MANY
    result = crossmodal.fuse(torch.zeros(1, 1, 1, 64), [Source(key, value)], return_lse=True)
    in_torch = torch.full((1, keys), 0.0).softmax(-1) @ value[0, 0]  # wrong by a third: 2^24 + 1 = 2^24 in float32
    exact = value[:, :, :1].double().numpy()
    assert_as_accurate("out", result.out, [in_torch[None, None]], exact, eps_of(torch.float32))
    torch.testing.assert_close(result.lse, torch.full((1, 1, 1), keys, dtype=torch.float64).log().float())


def test_offsets_of_associated_keys_need_64_bits(isa):
    q, k = far_apart((1, 2, 3, 16), 1), far_apart((1, 2, 9, 16), 2)
    for options in ({}, {"reduce": "heads"}, {"reduce": "keys"}, {"reduce": "entropy"}, {"reduce": "mass"}):
        wanted = crossmodal.associate(q.contiguous(), k.contiguous(), **options)
        assert torch.equal(crossmodal.associate(q, k, **options), wanted)
