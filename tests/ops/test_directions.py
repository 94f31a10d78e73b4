"""Gradients in several directions at once, as torch's older vmap has them."""

import pytest
import torch

import crossmodal
from crossmodal import Source

Q, K, V = torch.randn(2, 2, 3, 4), torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 4)
LENGTHS = torch.tensor([5, 2])
ENDS = torch.tensor([0, 2, 6], dtype=torch.int32)

CALLS = {
    "attention": lambda q: crossmodal.attention(q, K, V),
    "lengths": lambda q: crossmodal.attention(q, K, V, key_lengths=LENGTHS),
    "bias and sink": lambda q: crossmodal.attention(q, K, V, q @ K.mT, sink=q[0, :, 0, 0]),
    "fuse": lambda q: crossmodal.fuse(q, [Source(K, V), Source(q, q, LENGTHS.clamp(max=3))]).out,
    "mass": lambda q: crossmodal.fuse(q, [Source(K, V), Source(q, q)], return_mass=True).mass,
    "varlen": lambda q: crossmodal.attention_varlen(*3 * [q.transpose(1, 2).flatten(0, 1)], ENDS, ENDS, 4, 4),
    "associate": lambda q: crossmodal.associate(q, [Source(K, V), Source(q, q)]),
    "weighted_sum": lambda q: crossmodal.weighted_sum(q @ K.mT, V, lengths=LENGTHS),
    "softmax_weighted_sum": lambda q: crossmodal.softmax_weighted_sum(q @ K.mT, V, lengths=LENGTHS),
}


@pytest.mark.parametrize("name", CALLS)
def test_jacobian_is_that_of_one_direction_after_the_other(name):
    got, wanted = (torch.autograd.functional.jacobian(CALLS[name], Q, vectorize=v) for v in (True, False))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", CALLS)
def test_hessian_is_that_of_one_direction_after_the_other(name):
    def loss(q):
        return CALLS[name](q).square().sum()

    got, wanted = (torch.autograd.functional.hessian(loss, Q, vectorize=v) for v in (True, False))
    torch.testing.assert_close(got, wanted)
