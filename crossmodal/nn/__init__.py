"""Modules: torch.nn.MultiheadAttention's stand-in, and what a cross-modal model is made of."""

from crossmodal.nn.multihead_attention import MultiheadAttention

__all__ = ["MultiheadAttention"]
