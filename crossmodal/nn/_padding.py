"""Padding that is not projected: the visible rows of a padded batch, one sample after the other."""

from typing import NamedTuple

import torch
from torch import Tensor

from crossmodal._validate import values_are_readable
from crossmodal.nn._products import WORTHWHILE


class VisibleRows(NamedTuple):
    """Which rows of all samples are visible."""

    rows: Tensor  # (total,) int64, into the rows of a padded tensor
    cu_seqlens: Tensor  # (batch + 1,) int32
    max_seqlen: int

    def rows_of(self, padded: Tensor) -> Tensor:
        """``(total, features)``."""
        return padded.reshape(-1, padded.shape[-1]).index_select(0, self.rows)


def worth_skipping(key_padding_mask: Tensor | None, query: Tensor, key: Tensor, batch_first: bool) -> bool:
    """Whether rows may be left out, which changes shapes by values, and are many enough to pay for their copy."""
    if key_padding_mask is None or key_padding_mask.dtype != torch.bool:
        return False
    if not all(values_are_readable(t) for t in (key_padding_mask, query, key)):
        return False
    batch_and_length = key.shape[:2] if batch_first else key.shape[:2][::-1]  # another shape is for others to name
    if key_padding_mask.shape != batch_and_length or key.numel() * key.shape[-1] < WORTHWHILE:
        return False
    return 8 * int(key_padding_mask.sum()) >= key_padding_mask.numel()


def visible_rows(key_padding_mask: Tensor, batch_first: bool) -> VisibleRows:
    """From ``(batch, seqlen)``, True = ignore; rows count as in a tensor that is ``batch_first``, or not."""
    visible = ~key_padding_mask
    lengths = visible.sum(1, dtype=torch.int32)
    sample, place = visible.nonzero().unbind(1)
    batch, seqlen = visible.shape
    rows = sample * seqlen + place if batch_first else place * batch + sample
    ends = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return VisibleRows(rows, ends, int(lengths.max()) if batch else 0)
