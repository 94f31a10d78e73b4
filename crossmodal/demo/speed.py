"""The fused operator against plain torch on this machine: same input, same process, answers compared first."""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import crossmodal
from crossmodal.encoders.padding import is_real
from crossmodal.masks import key_padding
from crossmodal.types import Source

_WARM_UP, _MOST_ROUNDS = 2, 200


class FusionShape(NamedTuple):
    """The size of a fusion, ``(batch, num_heads, seqlen_q, head_dim)`` over sources of these lengths.

    Attributes:
        name: for people.
        sets: how many sets of modalities the queries are divided over; 1 = no mask (see ``FusionClassifier``).
    """

    name: str
    batch: int
    num_heads: int
    seqlen_q: int
    seqlens_k: tuple[int, ...]
    head_dim: int
    sets: int = 1


class Timing(NamedTuple):
    """One comparison.

    Attributes:
        name: of the shape.
        what: ``"forward"`` or ``"forward + backward"``.
        milliseconds: median per call, by implementation.
        speedup: how many times as long the others take as ``fused``: the median of the ratios of the calls of
            one round.
        rounds: how many rounds there were.
    """

    name: str
    what: str
    milliseconds: dict[str, float]
    speedup: dict[str, float]
    rounds: int


class _Problem:
    """Random input of one shape, and three ways to fuse it."""

    def __init__(self, shape: FusionShape, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def heads_last(length: int) -> Tensor:  # the layout that a projection leaves: a view, no copy
            size = (shape.batch, length, shape.num_heads, shape.head_dim)
            return torch.randn(size, generator=generator).transpose(1, 2).requires_grad_()

        self.query = heads_last(shape.seqlen_q)
        self.sources: list[Source] = []
        visible = []
        groups = (torch.rand(shape.sets, len(shape.seqlens_k), generator=generator) < 0.5).repeat_interleave(
            shape.seqlen_q // shape.sets, dim=0
        )
        groups[:, 0] = True  # no row without a key: scaled_dot_product_attention has no answer to that
        for column, seqlen_k in enumerate(shape.seqlens_k):
            lengths = torch.randint((seqlen_k + 1) // 2, seqlen_k + 1, (shape.batch,), generator=generator)
            mask = groups[:, column].view(1, 1, -1, 1) if shape.sets > 1 else None
            self.sources.append(Source(heads_last(seqlen_k), heads_last(seqlen_k), lengths, mask))
            real = key_padding(is_real(lengths, seqlen_k))
            visible.append(real if mask is None else real & mask)
        self.attn_mask = torch.cat(visible, dim=3)

    def fused(self) -> Tensor:
        return crossmodal.fuse(self.query, self.sources).out

    def reference(self) -> Tensor:
        return crossmodal.reference.fuse(self.query, self.sources).out

    def sdpa(self) -> Tensor:
        """What one writes without this package: concatenate, then attend under a mask that is ready-made."""
        key = torch.cat([source.key for source in self.sources], dim=2)
        value = torch.cat([source.value for source in self.sources], dim=2)
        return scaled_dot_product_attention(self.query, key, value, self.attn_mask)

    def leaves(self) -> list[Tensor]:
        return [self.query, *(tensor for source in self.sources for tensor in (source.key, source.value))]

    def ways(self) -> dict[str, Callable[[], Tensor]]:
        return {"fused": self.fused, "reference": self.reference, "sdpa": self.sdpa}


def compare_speed(
    shapes: Sequence[FusionShape], *, seconds: float, fewest_rounds: int = 5, seed: int = 0
) -> list[Timing]:
    """Time forward, and forward + backward, of every shape.

    Args:
        shapes: what to time, in float32, with the number of threads that torch is set to.
        seconds: about how long one comparison may take.
        fewest_rounds: that are made in any case.
        seed: of the inputs and of the order of the calls.

    Raises:
        AssertionError: when the implementations do not agree; nothing is timed then.
    """
    timings = []
    for shape in shapes:
        problem = _Problem(shape, seed)
        _check_agreement(problem)
        leaves = problem.leaves()

        def forward(way: Callable[[], Tensor]) -> None:
            with torch.no_grad():
                way()

        def both(way: Callable[[], Tensor], leaves: list[Tensor] = leaves) -> None:
            torch.autograd.grad(way().sum(), leaves)

        for what, call in (("forward", forward), ("forward + backward", both)):
            samples = _interleave(problem.ways(), call, seconds, fewest_rounds, random.Random(seed))
            timings.append(_summarize(shape.name, what, samples))
    return timings


def _check_agreement(problem: _Problem) -> None:
    leaves = problem.leaves()
    ways = problem.ways()
    wanted = problem.reference()
    wanted_grads = torch.autograd.grad(wanted.sum(), leaves)
    for name in ("fused", "sdpa"):
        got = ways[name]()
        gradients = torch.autograd.grad(got.sum(), leaves)
        for tensor, want in zip((got, *gradients), (wanted, *wanted_grads), strict=True):
            difference = (tensor - want).abs().max().item()
            allowed = 1e-4 * (1 + want.abs().max().item())
            if difference > allowed:
                raise AssertionError(f"{name} differs from the reference by {difference:.2g} > {allowed:.2g}")


def _interleave(
    ways: dict[str, Callable[[], Tensor]],
    call: Callable[[Callable[[], Tensor]], None],
    seconds: float,
    fewest_rounds: int,
    order: random.Random,
) -> dict[str, list[float]]:
    """Seconds per call; each round calls every way once, in random order, so that drift hits all alike."""
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(min(_WARM_UP, fewest_rounds)):
        for way in ways.values():
            call(way)
    names, stop = list(ways), time.perf_counter() + seconds
    while len(samples["fused"]) < fewest_rounds or (
        time.perf_counter() < stop and len(samples["fused"]) < _MOST_ROUNDS
    ):
        order.shuffle(names)
        for name in names:
            start = time.perf_counter()
            call(ways[name])
            samples[name].append(time.perf_counter() - start)
    return samples


def _summarize(name: str, what: str, samples: dict[str, list[float]]) -> Timing:
    milliseconds = {way: 1e3 * statistics.median(times) for way, times in samples.items()}
    speedup = {
        way: statistics.median(slow / fast for slow, fast in zip(times, samples["fused"], strict=True))
        for way, times in samples.items()
        if way != "fused"
    }
    return Timing(name, what, milliseconds, speedup, len(samples["fused"]))


def speed_table(timings: Sequence[Timing]) -> str:
    """The timings as a table of text."""
    threads = torch.get_num_threads()
    title = f"ms per call, float32, {threads} thread{'s' * (threads > 1)}"
    head = f"{title:<48}{'fused':>9}{'reference':>17}{'cat + SDPA':>17}"
    lines = [head, "-" * len(head)]
    for timing in timings:
        row = f"{timing.name + ', ' + timing.what:<48}{timing.milliseconds['fused']:>9.2f}"
        for way in ("reference", "sdpa"):
            row += f"{timing.milliseconds[way]:>9.2f}{f'({timing.speedup[way]:.1f}x)':>8}"
        lines.append(row)
    lines.append("in brackets: how many times as long as fused")
    return "\n".join(lines)


def speed_as_dict(timings: Sequence[Timing]) -> dict[str, Any]:
    """The timings ready for JSON."""
    return {"threads": torch.get_num_threads(), "cases": [timing._asdict() for timing in timings]}
