"""Times of `crossmodal.attention` on a GPU beside each backend of torch's SDPA, the shapes of a fusion layer.

    python benchmarks/cuda_attention.py [--json FILE]

Inputs rotate past the second-level cache, a graph replays them, opponents take turns in shuffled order, and the answer
is checked before anything is timed. The share of the bandwidth limit counts each input read and each output written
once, against a copy measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import crossmodal

# batch, heads, queries, keys, head_dim
SHAPES = {
    "image to text": (256, 8, 197, 77, 64),
    "text to image": (256, 8, 77, 197, 64),
    "text to audio": (64, 8, 32, 1500, 64),
    "head_dim 80": (64, 16, 576, 128, 80),
    "pooling": (4096, 8, 1, 197, 64),
    "long": (8, 16, 4096, 4096, 64),
    "long, head_dim 128": (8, 16, 4096, 4096, 128),
}
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
CACHE_BYTES = 128 << 20
ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    file = parser.parse_args().json
    gigabytes = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}: copies run at {gigabytes:.0f} GB/s")
    entries = []
    for name, shape in SHAPES.items():
        for backward in (False, True):
            entry = {"shape": name, "sizes": shape, "backward": backward, **times_of(shape, backward)}
            entries.append(entry)
            print(line_of(entry, gigabytes), flush=True)
    if file is not None:
        device = torch.cuda.get_device_name()
        report = {"device": device, "torch": torch.__version__, "copy_gb_per_s": gigabytes, "entries": entries}
        file.write_text(json.dumps(report, indent=1) + "\n")


def times_of(shape: tuple[int, ...], backward: bool) -> dict[str, dict[str, list[float]]]:
    """Microseconds of each provider that gives the right answer."""
    batch, heads, seqlen_q, seqlen_k, head_dim = shape
    moved = 2 * batch * heads * head_dim * (2 * seqlen_q + 2 * seqlen_k)
    sets = [inputs_of(shape, backward) for _ in range(max(2, min(8, 2 * CACHE_BYTES // moved + 1)))]
    providers: dict[str, Callable[..., Any]] = {"crossmodal": crossmodal.attention}
    query, key, value = (t.float() for t in sets[0][:3])
    exact = scaled_dot_product_attention(query, key, value)
    for name, backend in BACKENDS.items():
        providers[name] = with_backend(backend)
    graphs = {}
    for name, provider in providers.items():
        try:
            error = (provider(*sets[0][:3]) - exact).abs().max().item()
            assert error < 0.05, f"{name} is off by {error}"
            graphs[name] = captured(provider, sets, backward)
        except RuntimeError as refusal:
            print(f"  {name}: {str(refusal).splitlines()[0][:100]}")
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(ROUNDS):
        for name in random.sample(list(graphs), len(graphs)):
            samples[name].append(1000 * milliseconds(graphs[name].replay) / len(sets))
    return {"us": samples}


def inputs_of(shape: tuple[int, ...], backward: bool) -> tuple[Tensor, ...]:
    batch, heads, seqlen_q, seqlen_k, head_dim = shape

    def rows(count: int) -> Tensor:
        drawn = torch.randn(batch, heads, count, head_dim, device="cuda", dtype=torch.bfloat16)
        return drawn.requires_grad_(backward)

    return rows(seqlen_q), rows(seqlen_k), rows(seqlen_k), torch.randn_like(rows(seqlen_q))


def with_backend(backend: SDPBackend) -> Callable[..., Tensor]:
    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(query, key, value)

    return run


def captured(provider: Callable[..., Any], sets: list[tuple[Tensor, ...]], backward: bool) -> torch.cuda.CUDAGraph:
    """One pass over all inputs; with `backward` forward and backward."""

    def once() -> None:
        for *operands, dout in sets:
            out = provider(*operands)
            if backward:
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
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    target.copy_(source)
    fastest = min(milliseconds(lambda: target.copy_(source)) for _ in range(10))
    return 2 * source.numel() / fastest / 1e6


def line_of(entry: dict, gigabytes: float) -> str:
    batch, heads, seqlen_q, seqlen_k, head_dim = entry["sizes"]
    medians = {name: statistics.median(samples) for name, samples in entry["us"].items()}
    # Forward reads q, k, v and writes out; backward reads these and dout and writes three gradients.
    rows = 2 * (seqlen_q + seqlen_k) + (4 * seqlen_q + 4 * seqlen_k if entry["backward"] else 0)
    limit = 2 * batch * heads * head_dim * rows / gigabytes / 1000
    products = 14 if entry["backward"] else 4
    tflops = products * batch * heads * seqlen_q * seqlen_k * head_dim / medians["crossmodal"] / 1e6
    others = {name: us for name, us in medians.items() if name != "crossmodal"}
    best = min(others, key=others.__getitem__, default=None)
    beside = f"{others[best] / medians['crossmodal']:.2f}x {best}" if best else "no opponent"
    kind = "both" if entry["backward"] else "forward"
    return (
        f"{entry['shape']:20} {kind:8} {medians['crossmodal']:9.1f} us  {tflops:6.1f} TFLOP/s  "
        f"{100 * limit / medians['crossmodal']:4.0f} % of bandwidth  {beside}"
    )


if __name__ == "__main__":
    main()
