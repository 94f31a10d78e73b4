"""Modality dropout without chance: in training every sample is answered from several sets of modalities.

Random dropout shows a network one set of modalities per sample. Encoding is the expensive part and does not
depend on the set, so all sets can be answered from one encoding: more signal per step, and each encoder keeps
learning even where another modality alone would do.
"""

import torch
from torch import Tensor

from crossmodal._validate import check_count


def modality_sets(count: int) -> Tensor:
    """Which modalities each set holds: all of them, each one left out, each one alone.

    Args:
        count: number of modalities, at least 1.

    Returns:
        ``(sets, count)`` bool without repetition; row 0 holds every modality. Three modalities have seven
        sets, all that are not empty; in general there are ``2 * count + 1`` or fewer.

    Raises:
        ValueError: when ``count`` is less.
    """
    check_count("count", count)
    alone = torch.eye(count, dtype=torch.bool)
    rows = torch.cat([torch.ones(1, count, dtype=torch.bool), ~alone, alone])
    distinct = dict.fromkeys(tuple(row) for row in rows.tolist() if any(row))
    return torch.tensor(list(distinct))
