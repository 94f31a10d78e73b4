"""Connectionist temporal classification (Graves et al., 2006): symbols from a longer sequence of tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from crossmodal._validate import values_are_readable
from crossmodal.encoders.padding import is_real
from crossmodal.models.symbols import check_symbols

BLANK = 0  # symbols are numbered from 1


def ctc_loss(logits: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
    """Minus the log-probability of the targets, per symbol.

    Args:
        logits: ``(B, L, symbols + 1)``, 0 the blank.
        lengths: ``(B,)`` of the tokens.
        targets: ``(B, longest)`` int64 symbols from 1; negative numbers are padding.

    Returns:
        Scalar, the mean over all samples, in nats per symbol. A sample that has too few tokens for its target counts 0.

    Raises:
        ValueError: for a target above ``symbols``, for 0, and for a symbol behind padding (on CPU).
    """
    check_symbols("targets", targets, logits.shape[2] - 1)
    counts = (targets > 0).sum(1)
    if values_are_readable(targets) and not torch.equal(targets >= 0, is_real(counts, targets.shape[1])):
        raise ValueError("targets must be symbols from 1, then padding of negative numbers")
    per_sample = functional.ctc_loss(
        logits.float().log_softmax(2).transpose(0, 1),
        targets.clamp(min=0),
        lengths,
        counts,
        blank=BLANK,
        reduction="none",
        zero_infinity=True,
    )
    return (per_sample / counts.clamp(min=1)).mean()


def greedy_decode(logits: Tensor, lengths: Tensor) -> list[list[int]]:
    """Of each sample the likeliest symbol at each token, repetitions merged, blanks left out.

    Args:
        logits, lengths: see :func:`ctc_loss`.
    """
    best = logits.argmax(2)
    found = []
    for row, length in zip(best, lengths.tolist(), strict=True):
        merged = torch.unique_consecutive(row[:length])
        found.append(merged[merged != BLANK].tolist())
    return found


def edit_distance(first: Sequence[int], second: Sequence[int]) -> int:
    """The fewest insertions, deletions and replacements that make one of the other (Levenshtein)."""
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def error_rate(said: Sequence[Sequence[int]], true: Sequence[Sequence[int]]) -> float:
    """All edits over all symbols of the truth: the character error rate, where symbols are characters.

    Raises:
        ValueError: when the truth has no symbol at all.
    """
    total = sum(map(len, true))
    if not total:
        raise ValueError("true must hold at least one symbol, got none")
    return sum(edit_distance(a, b) for a, b in zip(said, true, strict=True)) / total
