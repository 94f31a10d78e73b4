"""Modules made of the fused operators."""

from crossmodal.blocks.attention_pool import AttentionPool
from crossmodal.blocks.cross_modal_attention import CrossModalAttention
from crossmodal.blocks.cross_modal_block import CrossModalBlock
from crossmodal.blocks.modality_discriminator import ModalityDiscriminator

__all__ = ["AttentionPool", "CrossModalAttention", "CrossModalBlock", "ModalityDiscriminator"]
