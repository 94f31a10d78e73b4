"""Modules made of the fused operators."""

from crossmodal.blocks.attention_pool import AttentionPool
from crossmodal.blocks.cross_modal_attention import CrossModalAttention
from crossmodal.blocks.cross_modal_block import CrossModalBlock

__all__ = ["AttentionPool", "CrossModalAttention", "CrossModalBlock"]
