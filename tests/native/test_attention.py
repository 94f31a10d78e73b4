"""The CUDA kernels of attention, emulated: as accurate as torch, in every order that a GPU may choose."""

from dataclasses import replace

import pytest
import torch

import crossmodal
from crossmodal.dispatch import most_cuda_head_dim
from tests.accuracy import check
from tests.native.emulated import MODES
from tests.native.problems import PROBLEMS, masked_keys_may_be_nan


@pytest.mark.parametrize("name", PROBLEMS)
def test_outputs_and_gradients_are_as_accurate_as_torch(emulated, name, dtype):
    check(replace(PROBLEMS[name], dtype=dtype))


def test_widest_heads_fit_the_smallest_gpu(emulated_once, dtype):
    width = most_cuda_head_dim(dtype)
    check(replace(PROBLEMS["PLAIN"], dtype=dtype, seqlen_q=20, head_dim=width, head_dim_v=width))


@pytest.mark.parametrize("seqlen_q", [4, 19], ids=["few_queries", "many_queries"])
def test_masked_keys_may_be_nan(emulated, dtype, seqlen_q):
    masked_keys_may_be_nan(dtype, seqlen_q)


def test_gradients_are_repeatable_bit_for_bit(emulator, emulated_once):
    """Whatever the order of threads and copies."""
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
