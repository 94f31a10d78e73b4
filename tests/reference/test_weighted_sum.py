"""The reference of `weighted_sum` against loops over single numbers."""

import pytest
import torch

from crossmodal.reference import weighted_sum


def in_loops(weights, values, lengths=None, mask=None):
    batch, heads, seqlen_q, seqlen_k = weights.shape
    out = torch.zeros(batch, heads, seqlen_q, values.shape[3], dtype=weights.dtype)
    taking_part = torch.ones(weights.shape, dtype=torch.bool) if mask is None else mask.expand(weights.shape)
    for b in range(batch):
        for j in range(seqlen_k if lengths is None else int(lengths[b])):
            for h in range(heads):
                for i in range(seqlen_q):
                    if taking_part[b, h, i, j]:
                        out[b, h, i] += weights[b, h, i, j].item() * values[b, h, j]
    return out


@pytest.mark.parametrize("lengths", [None, torch.tensor([0, 5]), torch.tensor([7, 3]).int()], ids=str)
@pytest.mark.parametrize("mask_shape", [None, (7,), (5, 7), (2, 1, 1, 7), (2, 3, 5, 7)], ids=str)
def test_equals_loops(lengths, mask_shape):
    weights, values = torch.randn(2, 3, 5, 7, dtype=torch.float64), torch.randn(2, 3, 7, 4, dtype=torch.float64)
    mask = None if mask_shape is None else torch.rand(mask_shape) < 0.5
    got = weighted_sum(weights, values, lengths=lengths, mask=mask)
    torch.testing.assert_close(got, in_loops(weights, values, lengths, mask))


def test_dout_of_a_row_of_skipped_keys_is_ignored():
    weights, values = torch.randn(1, 1, 5, 7, requires_grad=True), torch.randn(1, 1, 7, 4, requires_grad=True)
    mask = torch.ones(5, 7, dtype=torch.bool)
    mask[1] = False
    out = weighted_sum(weights, values, mask=mask)
    dout = torch.randn_like(out)
    dout[0, 0, 1] = float("nan")
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out, (weights, values), dout))


def test_skipped_keys_may_be_nan():
    weights, values = torch.randn(1, 1, 5, 7), torch.randn(1, 1, 7, 4)
    clean = weighted_sum(weights, values, lengths=torch.tensor([4]))
    weights[..., 4:], values[:, :, 4:] = float("nan"), float("inf")
    assert torch.equal(weighted_sum(weights, values, lengths=torch.tensor([4])), clean)
