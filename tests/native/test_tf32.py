"""float32 on matrix instructions, where torch's setting for products allows it: results are rounded, and no more."""

import pytest
import torch

import crossmodal
from tests.native.emulated import Copies, Schedule, tf32_allowed
from tests.native.problems import PROBLEMS, masked_keys_may_be_nan, problems_of, rounds_to_tf32

FEW = problems_of("ONE", "FEW")  # queries too few for matrix instructions


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name not in FEW])
def test_outputs_and_gradients_are_as_accurate_as_their_factors(emulated_once, name):
    emulated_once.set_mode(Schedule.RANDOM, Copies.RANDOM)  # other orders: of the same kernels, in test_kernels.py
    rounds_to_tf32(PROBLEMS[name])


def test_masked_keys_may_be_nan(emulated_once):
    with tf32_allowed():
        masked_keys_may_be_nan(torch.float32, 19)


@pytest.mark.parametrize("options", [{}, {"softcap": 5.0}], ids=["plain", "general"])
def test_factors_of_float32_are_rounded_where_that_is_allowed(emulated_once, dtype, options):
    torch.manual_seed(0)
    q, k = torch.randn(2, 4, 19, 40).to(dtype), torch.randn(2, 4, 70, 40).to(dtype)
    full = crossmodal.attention(q, k, k, **options)
    with tf32_allowed():
        rounded = crossmodal.attention(q, k, k, **options)
    off = (rounded - full).abs().max() / full.abs().max()
    assert 1e-5 < off < 2e-3 if dtype == torch.float32 else off == 0


def test_results_are_repeatable_bit_for_bit(emulated_once):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, n, 40, requires_grad=True) for n in (50, 90, 90))
    with tf32_allowed():
        out = crossmodal.attention(q, k, v, is_causal=True)
        first = (out, *torch.autograd.grad(out.sum(), (q, k, v)))
        out = crossmodal.attention(q, k, v, is_causal=True)
        again = (out, *torch.autograd.grad(out.sum(), (q, k, v)))
    assert all(map(torch.equal, first, again))
