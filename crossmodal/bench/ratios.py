"""Medians, quantiles, and ratios within rounds."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Summary(NamedTuple):
    """Of many samples: the median, and the middle three fifths around it."""

    median: float
    p20: float
    p80: float


def quantile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of the values lie below, between neighbours linearly."""
    if not values:
        raise ValueError("a quantile needs at least one value, got none")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def summarize(samples: Sequence[float]) -> Summary:
    return Summary(quantile(samples, 0.5), quantile(samples, 0.2), quantile(samples, 0.8))


def paired_ratios(slower: Sequence[float], faster: Sequence[float]) -> Summary:
    """How many times as long: of the ratios within each round, since what disturbs a round disturbs both."""
    return summarize([a / b for a, b in zip(slower, faster, strict=True)])


def geometric_mean(values: Iterable[float]) -> float:
    """What a factor is on average; of no values, nan."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan
