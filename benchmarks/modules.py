"""torch.nn.MultiheadAttention beside ours: ``python -m benchmarks.modules --json docs/trust/modules.json``.

Whole modules, projections included, as a model calls them: inference under no_grad, where torch takes its own fused
path, and a training step, forward and backward to inputs and parameters. One thread.

Beside each ratio stands the largest that this machine allows: torch's time over that of the products which no
implementation can do without, at the measured rate of multiply-adds.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import crossmodal
from benchmarks.paired import machine, paired_times, summary
from crossmodal.bench.peak import probe
from crossmodal.nn import _products

BATCH, TEXT, IMAGE, WIDTH, HEADS = 32, 77, 197, 512, 8
INFERENCE, PACKED, TRAINING = "inference", "inference, weights packed", "training step"


class Case(NamedTuple):
    """A call of a module."""

    query: Tensor
    key: Tensor
    options: dict[str, Any]
    keys: int  # that are visible, of all samples

    def operations(self, kind: str) -> int:
        """Multiplications and additions in the products of a call; backward has two products for each of forward's.

        Queries, outputs, and the keys and values that are visible are projected; scores and sums have one product each.
        """
        projections = 2 * WIDTH * WIDTH * (2 * BATCH * TEXT + 2 * self.keys)
        attention = 2 * 2 * TEXT * self.keys * WIDTH
        return (projections + attention) * (3 if kind == TRAINING else 1)


def cases(dtype: torch.dtype) -> dict[str, Case]:
    text, image = torch.randn(BATCH, TEXT, WIDTH, dtype=dtype), torch.randn(BATCH, IMAGE, WIDTH, dtype=dtype)
    words = torch.arange(TEXT) >= torch.randint(20, TEXT + 1, (BATCH, 1))
    patches = torch.arange(IMAGE) >= torch.randint(50, IMAGE + 1, (BATCH, 1))
    nothing = {"need_weights": False}
    all_words, all_patches = BATCH * TEXT, BATCH * IMAGE
    return {
        "self, 77 tokens": Case(text, text, nothing, all_words),
        "self, 77 tokens, padded": Case(text, text, {**nothing, "key_padding_mask": words}, int((~words).sum())),
        "cross, 77 over 197": Case(text, image, nothing, all_patches),
        "cross, 77 over 197, padded": Case(
            text, image, {**nothing, "key_padding_mask": patches}, int((~patches).sum())
        ),
        "self, 77 tokens, with weights": Case(text, text, {}, all_words),
    }


def inference(module: nn.Module, query: Tensor, key: Tensor, options: dict[str, Any]) -> Callable[[], Any]:
    @torch.no_grad()
    def call() -> None:
        module.eval()
        module(query, key, key, **options)

    return call


def training(module: nn.Module, query: Tensor, key: Tensor, options: dict[str, Any]) -> Callable[[], Any]:
    leaf = query.clone().requires_grad_()
    other = leaf if key is query else key.clone().requires_grad_()
    dout = torch.randn_like(query)

    def call() -> None:
        module.train()
        module(leaf, other, other, **options)[0].backward(dout)
        module.zero_grad()
        leaf.grad = other.grad = None

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description="torch.nn.MultiheadAttention beside ours")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    gflops = probe([torch.float32, torch.bfloat16], 1, quick=True).gflops
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        pair = {
            name: cls(WIDTH, HEADS, batch_first=True, dtype=dtype)
            for name, cls in (("torch", nn.MultiheadAttention), ("crossmodal", crossmodal.nn.MultiheadAttention))
        }
        pair["crossmodal"].load_state_dict(pair["torch"].state_dict())
        for name_of_case, case in cases(dtype).items():
            for kind in (INFERENCE, PACKED, TRAINING):
                way = training if kind == TRAINING else inference
                ways = {name: way(module, case.query, case.key, case.options) for name, module in pair.items()}
                with crossmodal.nn.packed_weights() if kind == PACKED else nullcontext():
                    times = paired_times(ways, arguments.rounds)
                found = summary(times, "crossmodal")
                least = 1e-9 * case.operations(kind) / gflops[str(dtype)[6:]]  # seconds
                # torch's shortest time: what else runs makes a time longer, and a limit look farther away.
                found["at the limit"] = round(min(times["torch"]) / least, 3)
                rows.append({"case": name_of_case, "dtype": str(dtype)[6:], "kind": kind, **found})
                ratios = f"{found['times as long']['torch']:.2f}x of {found['at the limit']:.2f}x"
                print(f"{rows[-1]['dtype']:9} {kind:25} {name_of_case:30} {ratios}", flush=True)
    result = {
        "machine": machine(),
        "shape": f"batch {BATCH}, width {WIDTH}, {HEADS} heads",
        "lead of oneDNN over the BLAS": {
            product: round(_products._lead(product, 1), 3) for product in ("linear", "weight gradient")
        },
        "peak, GFLOP/s": gflops,
        "rows": rows,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
