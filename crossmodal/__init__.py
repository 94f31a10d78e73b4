"""Fused cross-modal attention for PyTorch: several modalities, one softmax, no concatenation."""

from crossmodal import masks, reference
from crossmodal._library import build_info
from crossmodal.dispatch import strict
from crossmodal.explain import Plan, explain
from crossmodal.ops import associate, attention, attention_varlen, fuse, softmax_weighted_sum, weighted_sum
from crossmodal.types import FusionResult, Source

__all__ = [
    "FusionResult",
    "Plan",
    "Source",
    "associate",
    "attention",
    "attention_varlen",
    "build_info",
    "explain",
    "fuse",
    "masks",
    "reference",
    "softmax_weighted_sum",
    "strict",
    "weighted_sum",
]
