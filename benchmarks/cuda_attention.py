"""Times of crossmodal on a GPU beside what torch offers for the same thing, in the shapes of a fusion layer.

    python benchmarks/cuda_attention.py [--json FILE] [--seconds N]

Attention runs beside each backend of SDPA and, where its compilation is paid for, compiled FlexAttention; several
sources beside concatenation and the same backends; weighted sums beside torch.bmm. Inputs rotate past the second-level
cache, a graph replays them, opponents take turns in shuffled order, and the answer is checked before anything is timed.
The share of the bandwidth limit counts each input read and each output written once, against a copy measured in the
same run. The file is written after every case, so that what was measured is kept whatever comes after.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import crossmodal
from crossmodal import Source

Inputs = tuple[Tensor, ...]
Provider = Callable[..., Any]

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
CACHE_BYTES = 128 << 20
MOST_INPUTS = 8
ROUNDS = 7


@dataclass(frozen=True)
class Case:
    """Something to compute from inputs of these shapes, and who can."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    providers: dict[str, Provider]
    exact: Provider
    flop: float  # of forward; backward takes 2.5 times as many
    weights: tuple[int, ...] = ()  # inputs that are not features: drawn as weights of a row

    def inputs(self, needs_gradient: bool) -> Inputs:
        drawn = []
        for n, shape in enumerate(self.shapes):
            tensor = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
            if n in self.weights:
                tensor = tensor.softmax(-1)
            drawn.append(tensor.requires_grad_(needs_gradient))
        return tuple(drawn)

    @property
    def input_bytes(self) -> int:
        return 2 * sum(torch.Size(shape).numel() for shape in self.shapes)

    @property
    def output_bytes(self) -> int:
        *rows, _ = self.shapes[0]
        return 2 * torch.Size((*rows, self.shapes[-1][-1])).numel()


def attention_case(
    name: str, batch: int, heads: int, seqlen_q: int, seqlen_k: int, head_dim: int, *, flex: bool = False
) -> Case:
    query, key = ((batch, heads, rows, head_dim) for rows in (seqlen_q, seqlen_k))
    # Scores of long sequences would not fit the memory of math.
    fits = batch * heads * seqlen_q * seqlen_k < 1 << 29
    backends = {n: with_backend(backend) for n, backend in BACKENDS.items() if n != "math" or fits}
    providers: dict[str, Provider] = {"crossmodal": crossmodal.attention, **backends}
    if flex:
        providers["flex"] = compiled_flex()
    flop = 4.0 * batch * heads * seqlen_q * seqlen_k * head_dim
    return Case(name, (query, key, key), providers, scaled_dot_product_attention, flop)


def fuse_case(name: str, batch: int, heads: int, seqlen_q: int, seqlens_k: tuple[int, ...], head_dim: int) -> Case:
    def fused(query: Tensor, *rows: Tensor) -> Tensor:
        sources = [Source(key, value) for key, value in zip(rows[::2], rows[1::2], strict=True)]
        return crossmodal.fuse(query, sources).out

    def concatenated(attention: Provider, query: Tensor, *rows: Tensor) -> Tensor:
        return attention(query, torch.cat(rows[::2], 2), torch.cat(rows[1::2], 2))

    backends = {f"cat + {n}": partial(concatenated, with_backend(b)) for n, b in BACKENDS.items() if n != "math"}
    keys = [(batch, heads, rows, head_dim) for rows in seqlens_k for _ in range(2)]
    flop = 4.0 * batch * heads * seqlen_q * sum(seqlens_k) * head_dim
    exact = partial(concatenated, scaled_dot_product_attention)
    return Case(name, ((batch, heads, seqlen_q, head_dim), *keys), {"crossmodal": fused, **backends}, exact, flop)


def weighted_case(name: str, batch: int, heads: int, seqlen_q: int, seqlen_k: int, head_dim: int) -> Case:
    def bmm(weights: Tensor, values: Tensor) -> Tensor:
        return torch.bmm(weights.flatten(0, 1), values.flatten(0, 1)).unflatten(0, (batch, heads))

    shapes = ((batch, heads, seqlen_q, seqlen_k), (batch, heads, seqlen_k, head_dim))
    flop = 2.0 * batch * heads * seqlen_q * seqlen_k * head_dim
    return Case(name, shapes, {"crossmodal": crossmodal.weighted_sum, "bmm": bmm}, torch.matmul, flop, weights=(0,))


def cases() -> list[Case]:
    """What matters most comes first: time may run out."""
    return [
        attention_case("image to text", 256, 8, 197, 77, 64),
        attention_case("text to image", 256, 8, 77, 197, 64),
        attention_case("pooling", 4096, 8, 1, 197, 64),
        fuse_case("three sources", 64, 8, 77, (77, 197, 1500), 64),
        attention_case("text to audio", 64, 8, 32, 1500, 64),
        attention_case("long", 8, 16, 4096, 4096, 64),
        attention_case("long, head_dim 128", 8, 16, 4096, 4096, 128),
        attention_case("head_dim 80", 64, 16, 576, 128, 80),
        attention_case("one sample, long keys", 1, 8, 16, 16384, 64),
        weighted_case("weighted sum", 256, 8, 197, 77, 64),
        attention_case("image to text, flex too", 256, 8, 197, 77, 64, flex=True),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no case after so many")
    arguments = parser.parse_args()
    start = time.monotonic()
    gigabytes = copy_bandwidth()
    device = torch.cuda.get_device_name()
    print(f"{device}: copies run at {gigabytes:.0f} GB/s")
    report: dict[str, Any] = {
        "device": device,
        "torch": torch.__version__,
        "copy_gb_per_s": gigabytes,
        "entries": [],
        "left_out": [],
    }
    for case in cases():
        for backward in (False, True):
            if time.monotonic() - start > arguments.seconds:
                report["left_out"].append(f"{case.name}, {'both' if backward else 'forward'}")
                continue
            times, refusals = times_of(case, backward)
            entry = {"case": case.name, "shapes": case.shapes, "backward": backward, "us": times, "refused": refusals}
            report["entries"].append(entry)
            print(line_of(case, backward, times, gigabytes), flush=True)
            if arguments.json is not None:
                arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if report["left_out"]:
        print("no time was left for:", "; ".join(report["left_out"]))
    if wrong := [entry["case"] for entry in report["entries"] if "crossmodal" in entry["refused"]]:
        raise SystemExit(f"crossmodal was wrong or refused: {', '.join(wrong)}")


def times_of(case: Case, backward: bool) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Microseconds of each provider that gives the right answer, and why the others do not."""
    count = max(2, min(MOST_INPUTS, 2 * CACHE_BYTES // case.input_bytes + 1))
    sets = [case.inputs(backward) for _ in range(count)]
    floats = tuple(t.detach().float().requires_grad_(backward) for t in sets[0])
    dout = torch.randn_like(case.exact(*floats), dtype=torch.bfloat16) if backward else None
    exact = results_of(case.exact, floats, dout)
    graphs, refusals = {}, {}
    for name, provider in case.providers.items():
        try:
            found = results_of(provider, sets[0], dout)
            error = max(((f - e).abs().max() / e.abs().max()).item() for f, e in zip(found, exact, strict=True))
            if not error < 0.05:
                raise RuntimeError(f"is off by {error:.2g} of the largest number")
            graphs[name] = captured(provider, sets, dout)
        except Exception as refusal:  # a compiler's too: whatever it is, the others go on
            refusals[name] = f"{type(refusal).__name__}: {refusal}".splitlines()[0][:200]
            print(f"  {name}: {refusals[name]}")
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(ROUNDS):
        for name in random.sample(list(graphs), len(graphs)):
            samples[name].append(1000 * milliseconds(graphs[name].replay) / len(sets))
    return samples, refusals


def results_of(provider: Provider, operands: Inputs, dout: Tensor | None) -> list[Tensor]:
    """The output, with ``dout`` the gradients too."""
    out = provider(*operands)
    gradients = () if dout is None else torch.autograd.grad(out, operands, dout.to(out.dtype))
    return [t.detach() for t in (out, *gradients)]


def with_backend(backend: SDPBackend) -> Provider:
    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(query, key, value)

    return run


def compiled_flex() -> Provider:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def captured(provider: Provider, sets: list[Inputs], dout: Tensor | None) -> torch.cuda.CUDAGraph:
    """One pass over all inputs: forward, with ``dout`` backward too."""

    def once() -> None:
        for operands in sets:
            out = provider(*operands)
            if dout is not None:
                torch.autograd.grad(out, operands, dout)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        once()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once()
    graph.replay()
    return graph


def milliseconds(run: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def copy_bandwidth() -> float:
    """GB/s, read and written."""
    source = torch.randint(0, 256, (1 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    fastest = min(milliseconds(lambda: target.copy_(source)) for _ in range(10))
    return 2 * source.numel() / fastest / 1e6


def line_of(case: Case, backward: bool, times: dict[str, list[float]], gigabytes: float) -> str:
    kind = "both" if backward else "forward"
    medians = {name: statistics.median(samples) for name, samples in times.items()}
    if "crossmodal" not in medians:
        return f"{case.name:24} {kind:8} REFUSED"
    own = medians.pop("crossmodal")
    # Forward reads its inputs and writes out; backward reads these, out and dout, and writes a gradient of each input.
    moved = case.input_bytes + case.output_bytes
    if backward:
        moved += 2 * case.input_bytes + 2 * case.output_bytes
    limit = moved / gigabytes / 1000
    tflops = case.flop * (3.5 if backward else 1.0) / own / 1e6
    best = min(medians, key=medians.__getitem__, default=None)
    beside = f"{medians[best] / own:.2f}x {best}" if best else "no opponent"
    share = f"{100 * limit / own:4.0f} % of bandwidth"
    return f"{case.name:24} {kind:8} {own:9.1f} us  {tflops:6.1f} TFLOP/s  {share}  {beside}"


if __name__ == "__main__":
    main()
