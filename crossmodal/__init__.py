"""Fused cross-modal attention for PyTorch: several modalities, one softmax, no concatenation."""

from crossmodal import integrations, masks, nn, reference
from crossmodal._library import build_info
from crossmodal.convert import Conversion, convert, restore
from crossmodal.dispatch import strict
from crossmodal.explain import Plan, explain
from crossmodal.ops import associate, attention, attention_varlen, fuse, softmax_weighted_sum, weighted_sum
from crossmodal.sdpa import SdpaHandle, enable_sdpa, sdpa
from crossmodal.types import FusionResult, Source

__all__ = [
    "Conversion",
    "FusionResult",
    "Plan",
    "SdpaHandle",
    "Source",
    "associate",
    "attention",
    "attention_varlen",
    "build_info",
    "convert",
    "enable_sdpa",
    "explain",
    "fuse",
    "integrations",
    "masks",
    "nn",
    "reference",
    "restore",
    "sdpa",
    "softmax_weighted_sum",
    "strict",
    "weighted_sum",
]
