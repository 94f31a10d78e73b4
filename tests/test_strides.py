"""Memory order: outputs and gradients as the caller's tensors lie, inputs read where they stand and never written."""

import itertools

import pytest
import torch

import crossmodal
from crossmodal import Source

SENTINEL = float("nan")


class Guarded:
    """Random numbers of `shape` in the middle of sentinels, which a kernel must neither use nor change."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, offset: int, order: str) -> None:
        b, h, n, d = shape
        self.storage = torch.full((offset + 2 * (b + 2) * (h + 2) * (n + 2) * (d + 5),), SENTINEL, dtype=dtype)
        if order == "heads_inside":
            strides = ((n + 2) * (h + 2) * (d + 5), d + 5, (h + 2) * (d + 5), 1)
        else:
            strides = ((h + 2) * (n + 2) * (d + 5), (n + 2) * (d + 5), d + 5, 1)
        start = offset + sum(strides) + 2
        self.tensor = self.storage.as_strided(shape, strides, start)
        self.tensor.copy_(torch.randn(shape))
        self.before = self.storage.clone()

    def assert_untouched(self) -> None:
        bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[self.storage.itemsize]
        assert torch.equal(self.storage.view(bits), self.before.view(bits))


ORDERS = ["plain", "heads_inside"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize("seqlen_q", [1, 3, 19, 70])
def test_what_lies_around_the_inputs_is_neither_used_nor_changed(isa, dtype, seqlen_q, offset, order):
    guarded = [Guarded((2, 3, n, d), dtype, offset, order) for n, d in ((seqlen_q, 13), (37, 13), (37, 9))]
    leaves = [g.tensor.detach().requires_grad_() for g in guarded]
    dout = Guarded((2, 3, seqlen_q, 9), dtype, offset, order)
    bias = Guarded((2, 1, seqlen_q, 37), dtype, offset, order)
    lengths = torch.tensor([37, 20])
    out = crossmodal.attention(*leaves, bias.tensor, key_lengths=lengths)
    gradients = torch.autograd.grad(out, leaves, dout.tensor)
    weighted = crossmodal.weighted_sum(bias.tensor.expand(2, 3, seqlen_q, 37), leaves[2], lengths=lengths)
    gradients += torch.autograd.grad(weighted, leaves[2], dout.tensor)
    assert all(torch.isfinite(t).all() for t in (out, weighted, *gradients))
    for g in (*guarded, dout, bias):
        g.assert_untouched()


@pytest.mark.parametrize("order", ORDERS)
def test_gradients_have_the_memory_order_of_their_tensors(isa, order):
    leaves = []
    for n, width in ((5, 8), (7, 8), (7, 6)):
        tensor = torch.randn(2, n, 3, width).transpose(1, 2) if order == "heads_inside" else torch.randn(2, 3, n, width)
        leaves.append(tensor.requires_grad_())
    gradients = torch.autograd.grad(crossmodal.attention(*leaves).sum(), leaves)
    assert [g.stride() for g in gradients] == [t.stride() for t in leaves]


def test_output_of_transposed_tensors_merges_heads_without_a_copy():
    q = torch.randn(2, 5, 3, 8).transpose(1, 2)
    merged = crossmodal.attention(q, q, q).transpose(1, 2).view(2, 5, 24)  # view: raises if a copy were needed
    assert merged.is_contiguous()


@pytest.mark.parametrize("orders", list(itertools.product(ORDERS, repeat=4)), ids="-".join)
def test_every_mixture_of_memory_orders_gives_the_same(isa, orders):
    shapes = [(2, 3, 20, 8), (2, 3, 30, 8), (2, 3, 30, 6), (2, 3, 20, 6)]
    tensors = [torch.randn(shape) for shape in shapes]

    def run(q, k, v, dout):
        leaves = [t.detach().requires_grad_() for t in (q, k, v)]
        out = crossmodal.attention(*leaves)
        return [out, *torch.autograd.grad(out, leaves, dout)]

    mixed = [
        t.transpose(1, 2).contiguous().transpose(1, 2) if order == "heads_inside" else t
        for t, order in zip(tensors, orders, strict=True)
    ]
    assert all(torch.equal(a, b) for a, b in zip(run(*mixed), run(*tensors), strict=True))


@pytest.mark.parametrize("seqlen_q", [3, 20])
def test_dout_of_stride_zero_is_read_as_it_is(isa, seqlen_q):
    """What `out.sum()` sends back is one number, expanded."""
    leaves = [torch.randn(2, 3, n, 8, requires_grad=True) for n in (seqlen_q, 30, 30)]
    ones = torch.autograd.grad(crossmodal.attention(*leaves), leaves, torch.ones(2, 3, seqlen_q, 8))
    assert all(
        torch.equal(a, b)
        for a, b in zip(torch.autograd.grad(crossmodal.attention(*leaves).sum(), leaves), ones, strict=True)
    )


def test_expanded_keys_and_values_are_read_where_they_stand(isa):
    """One set of keys for all samples and heads costs no copy, whatever the batch: strides of 0."""
    q, key = torch.randn(2, 3, 20, 8), torch.randn(1, 1, 30, 8)
    wide = key.expand(2, 3, 30, 8)
    expected = crossmodal.attention(q, wide.contiguous(), wide.contiguous())
    assert torch.equal(crossmodal.attention(q, wide, wide), expected)
    assert torch.equal(crossmodal.attention(q, key, key), expected)


@pytest.mark.parametrize("lengths", [torch.tensor([3]).expand(2), torch.tensor([9, 3, 9, 3])[1::2]], ids=["0", "2"])
def test_lengths_of_any_stride(isa, lengths):
    q, k = torch.randn(2, 3, 20, 8), torch.randn(2, 3, 30, 8)
    assert torch.equal(
        crossmodal.attention(q, k, k, key_lengths=lengths), crossmodal.attention(q, k[:, :, :3], k[:, :, :3])
    )


@pytest.mark.parametrize("form", ["expanded", "transposed", "every other"])
@pytest.mark.parametrize("kind", [torch.bool, torch.float32], ids=["bool", "float"])
def test_masks_of_any_stride(isa, kind, form):
    q, k = torch.randn(2, 3, 20, 8), torch.randn(2, 3, 30, 8)
    numbers = torch.randn(2, 3, 40, 60)
    mask = {
        "expanded": numbers[:1, :, :1, :30].expand(2, 3, 20, 30),
        "transposed": numbers.transpose(2, 3)[:, :, :20, :30],
        "every other": numbers[:, :, ::2, ::2],
    }[form]
    mask = mask if kind == torch.float32 else mask > 0
    assert torch.equal(crossmodal.attention(q, k, k, mask), crossmodal.attention(q, k, k, mask.contiguous()))


def test_sources_may_lie_in_different_orders(isa):
    q = torch.randn(2, 3, 20, 8)
    first, second = torch.randn(2, 30, 3, 8).transpose(1, 2), torch.randn(2, 3, 8, 10).transpose(2, 3)
    plain = [Source(t.contiguous(), t.contiguous()) for t in (first, second)]
    assert torch.equal(
        crossmodal.fuse(q, [Source(first, first), Source(second, second)]).out, crossmodal.fuse(q, plain).out
    )
