"""Calls that no kernel takes: right all the same, said once, refused in strict mode."""

import logging

import pytest
import torch

import crossmodal
from crossmodal import Source, dispatch, reference

Q, K = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8)
TWO_HEADS = K[:, :2]
SEED = torch.tensor([7])

NO_KERNEL = {
    "float16": (lambda m: m.attention(Q.half(), K.half(), K.half()), "torch.float16"),
    "grouped-query attention": (lambda m: m.attention(Q, TWO_HEADS, TWO_HEADS, enable_gqa=True), "grouped-query"),
    "grouped-query fuse": (lambda m: m.fuse(Q, [Source(TWO_HEADS, TWO_HEADS)]).out, "grouped-query"),
    "window": (lambda m: m.attention(Q, K, K, window_size=(1, 0)), "window_size"),
    "lower_right": (lambda m: m.attention(Q, K, K, is_causal=True, causal_align="lower_right"), "lower_right"),
    "softcap": (lambda m: m.attention(Q, K, K, softcap=2.0), "softcap"),
    "sink": (lambda m: m.attention(Q, K, K, sink=torch.zeros(4)), "sink"),
    "query_lengths": (lambda m: m.attention(Q, K, K, query_lengths=torch.tensor([5, 2])), "query_lengths"),
    "dropout": (lambda m: m.attention(Q, K, K, dropout_p=0.5, dropout_seed=SEED), "dropout"),
    "entropy": (lambda m: m.associate(Q, K, reduce="entropy"), "entropy"),
}


@pytest.mark.parametrize("name", NO_KERNEL)
def test_without_a_kernel_the_reference_answers(name):
    call, _ = NO_KERNEL[name]
    assert torch.equal(call(crossmodal), call(reference))


@pytest.mark.parametrize("name", NO_KERNEL)
def test_strict_mode_says_what_is_missing(name):
    call, reason = NO_KERNEL[name]
    with crossmodal.strict(), pytest.raises(RuntimeError, match=reason):
        call(crossmodal)


def test_strict_mode_lets_kernels_pass():
    with crossmodal.strict():
        q = Q.detach().requires_grad_()
        result = crossmodal.fuse(q, [Source(K, K), None], return_lse=True, return_mass=True)
        result.out.sum().backward()
        crossmodal.associate(Q, K, topk=2)
        crossmodal.associate(Q, K, reduce="heads")
        crossmodal.weighted_sum(torch.rand(5, 7), torch.rand(7, 8))


def test_strict_mode_ends_with_its_block():
    with pytest.raises(RuntimeError), crossmodal.strict():
        crossmodal.attention(Q, K, K, softcap=1.0)
    crossmodal.attention(Q, K, K, softcap=1.0)


def test_each_reason_is_logged_once(caplog, monkeypatch):
    monkeypatch.setattr(dispatch, "_told", set())
    with caplog.at_level(logging.WARNING, "crossmodal"):
        for _ in range(3):
            crossmodal.attention(Q, K, K, softcap=2.0)
    assert [r.getMessage() for r in caplog.records] == ["attention runs in plain torch: softcap has no kernel yet"]


def test_dropout_with_one_seed_repeats():
    first, again = (crossmodal.attention(Q, K, K, dropout_p=0.5, dropout_seed=SEED) for _ in range(2))
    other = crossmodal.attention(Q, K, K, dropout_p=0.5, dropout_seed=SEED + 1)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_dropout_is_drawn_from_torch():
    torch.manual_seed(3)
    first = crossmodal.attention(Q, K, K, dropout_p=0.5)
    torch.manual_seed(3)
    assert torch.equal(crossmodal.attention(Q, K, K, dropout_p=0.5), first)


def test_dropout_keeps_the_mean():
    value = torch.ones(1, 1, 64, 1)
    out = crossmodal.attention(torch.zeros(1, 1, 512, 4), torch.zeros(1, 1, 64, 4), value, dropout_p=0.25)
    # 32,768 draws: the mean of kept / (1 - p) has a standard deviation of 0.0032.
    assert abs(out.mean().item() - 1) < 0.016
