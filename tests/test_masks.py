"""`masks`: masks in the form that the operators take."""

import pytest
import torch

import crossmodal
from crossmodal import masks

Q, K, V = torch.zeros(2, 4, 5, 8), torch.zeros(2, 4, 7, 8), torch.zeros(2, 4, 7, 6)


def test_key_padding_wants_two_dimensions():
    with pytest.raises(ValueError, match=r"mask must have shape \(batch, seqlen_k\), got \(2, 1, 7\)"):
        masks.key_padding(torch.ones(2, 1, 7, dtype=torch.bool))


def test_key_padding_wants_bool_or_float():
    with pytest.raises(TypeError, match=r"mask must be bool or floating point, got torch\.int64"):
        masks.key_padding(torch.ones(2, 7, dtype=torch.int64))


def test_key_padding_wants_a_tensor():
    with pytest.raises(TypeError, match=r"mask must be a torch\.Tensor, got list"):
        masks.key_padding([[True, False]])


def test_key_padding_broadcasts_over_heads_and_queries():
    mask = torch.tensor([[True, False, True, True, True, True, False]] * 2)
    expected = crossmodal.attention(Q + 1, K[:, :, [0, 2, 3, 4, 5]] + 1, V[:, :, [0, 2, 3, 4, 5]] + 1)
    assert torch.equal(crossmodal.attention(Q + 1, K + 1, V + 1, masks.key_padding(mask)), expected)
