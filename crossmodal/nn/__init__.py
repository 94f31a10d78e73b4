"""Modules: torch.nn.MultiheadAttention's stand-in, and what a cross-modal model is made of."""

from crossmodal.nn import _plans  # noqa: F401  registers what explain knows of modules
from crossmodal.nn.adversary import ModalityDiscriminator, gradient_reversal
from crossmodal.nn.attention_pool import AttentionPool
from crossmodal.nn.cross_modal_attention import CrossModalAttention, CrossModalOutput
from crossmodal.nn.cross_modal_block import CrossModalBlock
from crossmodal.nn.linear import Linear
from crossmodal.nn.multihead_attention import MultiheadAttention
from crossmodal.nn.packed_weights import packed_weights

__all__ = [
    "AttentionPool",
    "CrossModalAttention",
    "CrossModalBlock",
    "CrossModalOutput",
    "Linear",
    "ModalityDiscriminator",
    "MultiheadAttention",
    "gradient_reversal",
    "packed_weights",
]
