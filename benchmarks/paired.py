"""Times of several ways to do the same, taken in turns: what drifts on a machine drifts for all of them."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from crossmodal.bench.machine import describe_machine


def paired_times(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of CPU time of this thread, by way, one entry a round; the first round is not kept."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            start = time.thread_time()
            way()
            times[name].append(time.thread_time() - start)
    return {name: taken[1:] for name, taken in times.items()}


def summary(times: dict[str, list[float]], subject: str) -> dict[str, Any]:
    """Medians in milliseconds, and how many times as long as ``subject`` each other takes: the median of the rounds."""
    others = {name: taken for name, taken in times.items() if name != subject}
    ratios = {
        name: statistics.median(a / b for a, b in zip(taken, times[subject], strict=True))
        for name, taken in others.items()
    }
    return {
        "milliseconds": {name: round(1e3 * statistics.median(taken), 3) for name, taken in times.items()},
        "times as long": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "rounds": len(times[subject]),
    }


def machine() -> dict[str, Any]:
    return describe_machine(torch.get_num_threads())
