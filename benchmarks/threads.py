"""How much faster two threads are than one: ``python -m benchmarks.threads --json docs/trust/threads.json``.

Wall time, the numbers of threads in turns within each round. A machine that has no second core to spare shows in the
control, a product of large matrices that shares nothing: what it does not reach, no kernel can. Run it with
OMP_WAIT_POLICY=passive, or threads that wait for work keep a core from those that have some, and with
OMP_PROC_BIND=true, or a scheduler may put both on one core.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import crossmodal
from benchmarks.paired import machine
from crossmodal.bench.shapes import ATTENTION, Shape

SHAPES = [s for s in ATTENTION if s.batch > 1 or s.name == "long"]


def ways(shape: Shape, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    batch, heads, rows, keys, width = shape.size
    query = torch.randn(batch, heads, rows, width, dtype=dtype)
    key, value = (torch.randn(batch, heads, keys, width, dtype=dtype) for _ in range(2))
    q, k, v = leaves = [t.clone().requires_grad_() for t in (query, key, value)]
    out, dout = crossmodal.attention(q, k, v), torch.randn(batch, heads, rows, width, dtype=dtype)
    return {
        "forward": lambda: crossmodal.attention(query, key, value),
        "backward": lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True),
    }


def control(dtype: torch.dtype) -> Callable[[], Any]:
    a, b = torch.randn(768, 768, dtype=dtype), torch.randn(768, 768, dtype=dtype)
    return lambda: torch.mm(a, b)


def speedup(call: Callable[[], Any], threads: int, rounds: int) -> dict[str, float]:
    """Of `threads` threads over one, the median of the rounds with their p20 and p80."""
    ratios = []
    for _ in range(rounds):
        seconds = {}
        for count in random.sample((1, threads), 2):
            torch.set_num_threads(count)
            call()
            start = time.perf_counter()
            call()
            seconds[count] = time.perf_counter() - start
        ratios.append(seconds[1] / seconds[threads])
    torch.set_num_threads(1)
    low, *_, high = statistics.quantiles(ratios, n=5)
    return {"median": round(statistics.median(ratios), 3), "p20": round(low, 3), "p80": round(high, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description="one thread beside several")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for dtype in (torch.float32, torch.bfloat16):
        cases = {("control", "torch.mm"): control(dtype)}
        for shape in SHAPES:
            cases |= {(shape.name, name): way for name, way in ways(shape, dtype).items()}
        for (shape_name, name), way in cases.items():
            found = speedup(way, arguments.threads, arguments.rounds)
            rows.append({"shape": shape_name, "dtype": str(dtype)[6:], "pass": name, **found})
            print(f"{rows[-1]['dtype']:9} {shape_name:24} {name:9} {found['median']:.2f}x", flush=True)
    ours = [row["median"] for row in rows if row["shape"] != "control"]
    result = {
        "machine": machine(),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "geometric mean": round(statistics.geometric_mean(ours), 3),
        "rows": rows,
    }
    print(f"geometric mean {result['geometric mean']:.2f}x")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
