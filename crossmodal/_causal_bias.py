"""torch's own word for a causal mask, ``torch.nn.attention.bias``: a tensor class without numbers."""

from typing import NamedTuple

from torch import Tensor
from torch.nn.attention.bias import CausalBias, CausalVariant


class Causality(NamedTuple):
    """Three arguments of ``attention``."""

    attn_mask: Tensor | None
    is_causal: bool
    causal_align: str


def without_causal_bias(given: Causality, query: Tensor, key: Tensor, *, beside_others: bool) -> Causality:
    """The same where ``attn_mask`` is a CausalBias: causal by name where it stands alone, else as a mask.

    Its diagonal is that of its own sizes, whatever a sample's lengths are, which move ours.
    """
    bias = given.attn_mask
    if not isinstance(bias, CausalBias):
        return given
    fits = (bias.seq_len_q, bias.seq_len_kv) == (query.shape[-2], key.shape[-2])
    if beside_others or given.is_causal or not fits:  # what does not fit is named where masks are checked
        return given._replace(attn_mask=bias._materialize(query.device))
    return Causality(None, True, "lower_right" if bias.variant == CausalVariant.LOWER_RIGHT else "upper_left")
