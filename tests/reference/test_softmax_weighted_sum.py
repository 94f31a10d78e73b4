"""The reference of `softmax_weighted_sum` against loops over single numbers."""

import math

import pytest
import torch

from crossmodal.reference import softmax_weighted_sum


def in_loops(scores, values, lengths=None, mask=None, scale=1.0):
    batch, heads, seqlen_q, seqlen_k = scores.shape
    out = torch.zeros(batch, heads, seqlen_q, values.shape[3], dtype=scores.dtype)
    taking_part = torch.ones(scores.shape, dtype=torch.bool) if mask is None else mask.expand(scores.shape)
    for b in range(batch):
        for h in range(heads):
            for i in range(seqlen_q):
                exponentials = {}
                for j in range(seqlen_k if lengths is None else int(lengths[b])):
                    score = scores[b, h, i, j].item()
                    if taking_part[b, h, i, j] and score != -math.inf:
                        exponentials[j] = math.exp(scale * score)
                total = sum(exponentials.values())
                for j, exponential in exponentials.items():
                    out[b, h, i] += exponential / total * values[b, h, j]
    return out


def inputs() -> list[torch.Tensor]:
    return [torch.randn(shape, dtype=torch.float64) for shape in ((2, 3, 5, 7), (2, 3, 7, 4))]


@pytest.mark.parametrize("lengths", [None, torch.tensor([0, 5]), torch.tensor([7, 3]).int()], ids=str)
@pytest.mark.parametrize("mask_shape", [None, (7,), (5, 7), (2, 1, 1, 7), (2, 3, 5, 7)], ids=str)
def test_equals_loops(lengths, mask_shape):
    scores, values = inputs()
    scores = scores.masked_fill(torch.rand(scores.shape) < 0.2, -math.inf)
    mask = None if mask_shape is None else torch.rand(mask_shape) < 0.5
    got = softmax_weighted_sum(scores, values, lengths=lengths, mask=mask)
    torch.testing.assert_close(got, in_loops(scores, values, lengths, mask))


@pytest.mark.parametrize("scale", [0.3, -2.0, 0.0])
def test_scale_equals_loops(scale):
    scores, values = inputs()
    scores[0, 0, :, 2] = -math.inf
    torch.testing.assert_close(softmax_weighted_sum(scores, values, scale=scale), in_loops(scores, values, scale=scale))


def test_huge_scores_do_not_overflow():
    scores, values = inputs()
    out = softmax_weighted_sum(1e6 * scores, values)
    largest = scores.argmax(-1)
    torch.testing.assert_close(out, values.gather(2, largest.unsqueeze(-1).expand(*largest.shape, 4)))


def test_dout_of_a_row_of_hidden_keys_is_ignored():
    scores, values = (t.requires_grad_() for t in inputs())
    mask = torch.ones(5, 7, dtype=torch.bool)
    mask[1] = False
    out = softmax_weighted_sum(scores, values, mask=mask)
    dout = torch.randn_like(out)
    dout[:, :, 1] = math.nan
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out, (scores, values), dout))


def test_hidden_keys_may_be_nan():
    scores, values = inputs()
    lengths = torch.tensor([4, 4])
    clean = softmax_weighted_sum(scores, values, lengths=lengths)
    scores[..., 4:], values[:, :, 4:] = math.nan, math.inf
    leaves = [scores.requires_grad_(), values.requires_grad_()]
    out = softmax_weighted_sum(*leaves, lengths=lengths)
    assert torch.equal(out, clean)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out.sum(), leaves))


def test_passes_gradcheck():
    scores, values = (t[:1].requires_grad_() for t in inputs())
    assert torch.autograd.gradcheck(lambda s, x: softmax_weighted_sum(s, x, scale=-0.5), (scores, values))
