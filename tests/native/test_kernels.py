"""The CUDA kernels, emulated: as accurate as torch, in every order that a GPU may choose."""

import re
from dataclasses import replace
from functools import partial

import pytest
import torch

import crossmodal
from crossmodal.dispatch import MOST_CUDA_HEAD_DIM
from tests import test_large
from tests.accuracy import check
from tests.native.build import ROOT
from tests.native.emulated import MODES
from tests.native.problems import (
    EVERY_PROBLEM,
    equal_links_keep_their_order,
    in_dtype,
    infinite_value_of_the_last_key_arrives,
    masked_keys_may_be_nan,
)


@pytest.mark.parametrize("name", EVERY_PROBLEM)
def test_outputs_and_gradients_are_as_accurate_as_torch(emulated, name, dtype):
    if name.startswith("SHORT_") and dtype.itemsize > 2:
        pytest.skip("half precision alone has a kernel for short backwards")
    check(in_dtype(EVERY_PROBLEM[name], dtype))


@pytest.mark.parametrize("name", ["PLAIN", "BIASES"])
def test_widest_heads_fit_the_smallest_gpu(emulated_once, dtype, name):
    width = MOST_CUDA_HEAD_DIM
    check(in_dtype(replace(EVERY_PROBLEM[name], seqlen_q=20, head_dim=width, head_dim_v=width), dtype))


@pytest.mark.parametrize("seqlen_q", [3, 40])
@pytest.mark.parametrize("widths", [(3001, 1), (1, 3001), (257, 8)], ids=str)
def test_heads_that_are_too_wide_are_refused_by_the_operators_themselves(emulated_once, widths, seqlen_q):
    width, width_v = widths
    query, key, value = torch.randn(1, 1, seqlen_q, width), torch.randn(1, 1, 9, width), torch.randn(1, 1, 9, width_v)
    refused = pytest.raises((RuntimeError, ValueError), match=r"attention: head_dim.* (3001|257) is more than 256")
    with refused:
        torch.ops.crossmodal.attention_plain.default(query, key, value, 1.0, False, False)
    out, statistics = torch.randn(1, 1, seqlen_q, width_v), torch.zeros(2, seqlen_q)
    with refused:
        torch.ops.crossmodal.attention_plain_bwd.default(
            out, query, key, value, out, statistics, 1.0, False, False, True, True, True
        )


def test_weighted_sums_of_more_heads_than_a_grid_has_rows(emulated_once):
    """Blocks take several, one after the other, in the same shared memory."""
    weights, values = (torch.randn(65_535 + 3, 1, *s, requires_grad=True) for s in ((2, 1), (1, 2)))
    out, wanted = crossmodal.weighted_sum(weights, values), weights @ values
    assert torch.equal(out, wanted)
    dout = torch.randn_like(out)
    found = torch.autograd.grad(out, (weights, values), dout)
    for got, gradient in zip(found, torch.autograd.grad(wanted, (weights, values), dout), strict=True):
        torch.testing.assert_close(got, gradient)


@pytest.mark.parametrize("seqlen_q", [4, 19], ids=["few_queries", "many_queries"])
def test_masked_keys_may_be_nan(emulated, dtype, seqlen_q):
    masked_keys_may_be_nan(dtype, seqlen_q)


def test_equal_links_keep_their_order(emulated, dtype):
    equal_links_keep_their_order(dtype)


def test_infinite_value_of_the_last_key_arrives(emulated_once, dtype):
    infinite_value_of_the_last_key_arrives(dtype)


def test_gradients_are_repeatable_bit_for_bit(emulator, emulated_once):
    """Whatever the order of blocks, threads and copies."""
    results = []
    for mode in MODES:
        emulator.set_mode(*mode)
        torch.manual_seed(0)
        q, k, v = (torch.randn(2, 4, n, 40, dtype=torch.bfloat16, requires_grad=True) for n in (50, 90, 90))
        bias = torch.randn(4, 1, 90, requires_grad=True)
        out = crossmodal.attention(q, k, v, bias, 0.2, dropout_seed=torch.tensor([3]))
        results.append(torch.autograd.grad(out.sum(), (q, k, v, bias)))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


FAR_APART = {
    **{
        f"{dim} of {name} queries": partial(
            test_large.test_offsets_of_query_key_value_and_dout_need_64_bits, None, seqlen_q, number
        )
        for number, dim in enumerate(("samples", "heads", "rows"))
        for name, seqlen_q in (("few", 2), ("many", 33))
    },
    "packed rows": partial(test_large.test_offsets_of_packed_rows_need_64_bits, None),
    "associated keys": partial(test_large.test_offsets_of_associated_keys_need_64_bits, None),
    "mask": partial(test_large.test_mask_of_more_elements_gives_what_its_visible_part_gives, None),
    "weights": partial(
        test_large.test_weights_of_more_elements_give_what_their_visible_part_gives, None, crossmodal.weighted_sum
    ),
}


@pytest.mark.parametrize("name", FAR_APART)
def test_offsets_need_64_bits(emulated_once, monkeypatch, name):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # gigabytes, never read
    FAR_APART[name]()


@pytest.mark.parametrize("seqlen_k", [9, 3], ids=["rows", "rows more than 2^31 bytes apart"])
def test_offsets_of_a_query_to_each_warp_need_64_bits(emulated_once, monkeypatch, seqlen_k):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    q, dout = torch.randn(2, 16, 2, 1, 64, dtype=torch.bfloat16)
    k, v = (test_large.far_apart((16, 2, seqlen_k, 64), 2) for _ in range(2))

    def run(*operands):
        leaves = [t.detach().requires_grad_() for t in operands]
        out = crossmodal.attention(*leaves)
        return [out, *torch.autograd.grad(out, leaves, dout)]

    for got, wanted in zip(run(q, k, v), run(q, k.contiguous(), v.contiguous()), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0.02, atol=0.02)


def attended(batch, seqlen_q, seqlen_k, *mask, head_dim=32, **options):
    q, k, v = (
        torch.randn(batch, 4, n, head_dim, dtype=torch.float16, requires_grad=True) for n in (seqlen_q, *[seqlen_k] * 2)
    )
    crossmodal.attention(q, k, v, *mask, **options).sum().backward()


def associated():
    query, key = (torch.randn(1, 1, n, 32, requires_grad=True) for n in (9, 300))
    crossmodal.associate(query, key, reduce="entropy").sum().backward()


def summed():
    weights, values = torch.randn(1, 2, 5, 9, requires_grad=True), torch.randn(1, 2, 9, 8, requires_grad=True)
    crossmodal.weighted_sum(weights, values).sum().backward()


LENGTHS = {"key_lengths": torch.tensor([90, 3, 0, 7])}
BIAS = torch.randn(1, 1, 70, 90, requires_grad=True)
PASSES = ["attention_bwd_queries", "attention_bwd_keys"]
# Calls, with their gradients, and the kernels that they launch, one after the other.
LAUNCHES = {
    "short": (partial(attended, 4, 70, 90), ["attention_fwd", "attention_bwd_short"]),
    "short with bias": (
        partial(attended, 4, 70, 90, BIAS),
        ["attention_fwd", "attention_bwd_short", "attention_bwd_terms"],
    ),
    "from a queue": (
        partial(attended, 4, 70, 90, softcap=5.0, **LENGTHS, head_dim=72),
        ["order_tiles", "attention_fwd", "order_tiles", PASSES[0], "order_tiles", PASSES[1]],
    ),
    "bias": (partial(attended, 4, 70, 90, BIAS, head_dim=72), ["attention_fwd", *PASSES, "attention_bwd_terms"]),
    "one query": (partial(attended, 4, 1, 90), ["attention_few_fwd", "attention_few_bwd"]),
    "one query of many": (partial(attended, 16, 1, 90, head_dim=64), ["attention_one_fwd", "attention_one_bwd"]),
    "one query of few": (
        partial(attended, 1, 1, 4096),
        ["attention_few_fwd", "merge_rows", "attention_few_bwd", "merge_dq"],
    ),
    "associate": (associated, ["attention_fwd", "merge_rows", "associate", *PASSES]),
    "weighted_sum": (summed, ["row_sum", "row_sum", "row_products"]),
}


def test_every_kernel_is_among_the_launches():
    sources = "".join(path.read_text() for path in (ROOT / "csrc" / "cuda").glob("**/*.[ch]*"))
    launched = re.findall(r'launch(?:_tiles|_grid|_pairs)?\(\s*"(\w+)_kernel"', sources)
    assert launched and set(launched) == {kernel for _, kernels in LAUNCHES.values() for kernel in kernels}


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_launch_that_fails_is_an_error_with_the_kernels_name(emulator, emulated_once, name):
    call, wanted = LAUNCHES[name]
    for launched, kernel in enumerate(wanted):
        with emulator.refusing_after(launched), pytest.raises(RuntimeError, match=f"{kernel}_kernel: invalid value"):
            call()
    with emulator.refusing_after(len(wanted)):
        call()
