"""docs/torch-findings.md: what torch 2.13 gets wrong, shown; a test that fails here says that torch has mended it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import crossmodal

pytestmark = pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="was found in torch 2.13")

Q, K = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8)


def test_causal_hint_hides_added_tokens():
    mha, x = nn.MultiheadAttention(8, 2, add_zero_attn=True), torch.randn(5, 3, 8)
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
    told, hinted = (
        mha(x, x, x, attn_mask=mask, need_weights=False, is_causal=is_causal)[0] for is_causal in (False, True)
    )
    assert not torch.allclose(told, hinted)


def test_mask_beside_is_causal_depends_on_the_backend():
    mask = torch.ones(5, 7, dtype=torch.bool)
    F.scaled_dot_product_attention(Q, K, K, mask, is_causal=True)
    with sdpa_kernel(SDPBackend.MATH), pytest.raises(RuntimeError, match="Explicit attn_mask should not be set"):
        F.scaled_dot_product_attention(Q, K, K, mask, is_causal=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_forward_mode_is_missing_in_the_backend_that_is_chosen():
    with pytest.raises(NotImplementedError, match="flash_attention_for_cpu"):
        torch.func.jvp(lambda q: F.scaled_dot_product_attention(q, K, K), (Q,), (Q,))
    torch.func.jvp(lambda q: crossmodal.attention(q, K, K), (Q,), (Q,))


def test_jagged_tensors_that_need_a_gradient_cannot_be_causal():
    q = torch.nested.nested_tensor([torch.randn(3, 2, 4), torch.randn(5, 2, 4)], layout=torch.jagged).transpose(1, 2)
    with pytest.raises(RuntimeError, match="No viable backend"):
        F.scaled_dot_product_attention(q, q, q, is_causal=True)
    crossmodal.attention(q, q, q, is_causal=True)


def test_weights_are_returned_after_dropout():
    """They do not sum to one, and are no probabilities."""
    mha, x = nn.MultiheadAttention(8, 2, dropout=0.5), torch.randn(5, 3, 8)
    assert not torch.allclose(mha(x, x, x)[1].sum(-1), torch.ones(()))
    ours = crossmodal.nn.MultiheadAttention(8, 2, dropout=0.5)
    torch.testing.assert_close(ours(x, x, x)[1].sum(-1), torch.ones(3, 5))


def test_padding_is_zero_or_not_depending_on_gradients():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1).eval()
    x, padding = torch.randn(2, 4, 8), torch.arange(4) >= torch.tensor([[4], [2]])
    with torch.no_grad():
        fused = encoder(x, src_key_padding_mask=padding)
    assert not fused[1, 2:].any() and encoder(x, src_key_padding_mask=padding)[1, 2:].all()
