"""Seconds per call of several ways to do the same thing, interleaved, in random order."""

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

Clock = Callable[[], float]


class Timed(NamedTuple):
    """What one sample times: ``run(prepare())``, of which ``prepare`` is not counted."""

    prepare: Callable[[], Any]
    run: Callable[[Any], Any]


class Effort(NamedTuple):
    """How long to measure.

    Attributes:
        seconds: about how long one comparison may take.
        fewest_rounds, most_rounds: rounds in any case, and at most; a round times every way once.
        sample_seconds: a call shorter than that is repeated within a sample, and the sample divided.
        warm_up: calls before the first sample.
    """

    seconds: float = 2.0
    fewest_rounds: int = 5
    most_rounds: int = 200
    sample_seconds: float = 5e-4
    warm_up: int = 2


def interleave(
    ways: Mapping[str, Timed], effort: Effort, order: random.Random, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds per call, one sample per way and round.

    Each round calls every way once, in an order drawn anew, so that what disturbs the machine hits all alike and the
    ratio within a round means something even where the times do not.
    """
    repeats = {name: _warm_up(way, effort, clock) for name, way in ways.items()}
    samples: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    stop = clock() + effort.seconds
    rounds = 0
    with _no_garbage_collection():
        while names and (rounds < effort.fewest_rounds or (clock() < stop and rounds < effort.most_rounds)):
            order.shuffle(names)
            for name in names:
                samples[name].append(_sample(ways[name], repeats[name], clock))
            rounds += 1
    return samples


def _sample(way: Timed, repeats: int, clock: Clock) -> float:
    prepared = [way.prepare() for _ in range(repeats)]
    run = way.run
    start = clock()
    for argument in prepared:
        run(argument)
    return (clock() - start) / repeats


def _warm_up(way: Timed, effort: Effort, clock: Clock) -> int:
    """Calls it a few times; returns how many calls make a sample."""
    shortest = math.inf
    for _ in range(max(1, effort.warm_up)):
        shortest = min(shortest, _sample(way, 1, clock))
    if shortest >= effort.sample_seconds:
        return 1
    most = 200  # what a sample's backward graphs may hold alive at once
    return min(most, math.ceil(effort.sample_seconds / max(shortest, 1e-7)))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch, and with it crossmodal, on this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
