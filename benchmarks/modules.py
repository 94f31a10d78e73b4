"""torch.nn.MultiheadAttention beside ours: ``python -m benchmarks.modules --json docs/trust/modules.json``.

Whole modules, projections included, as a model calls them: inference under no_grad, where torch takes its own fused
path, and a training step, forward and backward to inputs and parameters. One thread.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import crossmodal
from benchmarks.paired import machine, paired_times, summary
from crossmodal.nn import _products

BATCH, TEXT, IMAGE, WIDTH, HEADS = 32, 77, 197, 512, 8


def cases(dtype: torch.dtype) -> dict[str, tuple[tuple[Tensor, Tensor], dict[str, Any]]]:
    """By name: query and key, and keyword arguments of the call."""
    text, image = torch.randn(BATCH, TEXT, WIDTH, dtype=dtype), torch.randn(BATCH, IMAGE, WIDTH, dtype=dtype)
    words = torch.arange(TEXT) >= torch.randint(20, TEXT + 1, (BATCH, 1))
    patches = torch.arange(IMAGE) >= torch.randint(50, IMAGE + 1, (BATCH, 1))
    return {
        "self, 77 tokens": ((text, text), {"need_weights": False}),
        "self, 77 tokens, padded": ((text, text), {"need_weights": False, "key_padding_mask": words}),
        "cross, 77 over 197": ((text, image), {"need_weights": False}),
        "cross, 77 over 197, padded": ((text, image), {"need_weights": False, "key_padding_mask": patches}),
        "self, 77 tokens, with weights": ((text, text), {}),
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
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        pair = {
            name: cls(WIDTH, HEADS, batch_first=True, dtype=dtype)
            for name, cls in (("torch", nn.MultiheadAttention), ("crossmodal", crossmodal.nn.MultiheadAttention))
        }
        pair["crossmodal"].load_state_dict(pair["torch"].state_dict())
        for case, ((query, key), options) in cases(dtype).items():
            for kind, way in (("inference", inference), ("training step", training)):
                ways = {name: way(module, query, key, options) for name, module in pair.items()}
                found = summary(paired_times(ways, arguments.rounds), "crossmodal")
                rows.append({"case": case, "dtype": str(dtype)[6:], "kind": kind, **found})
                print(f"{rows[-1]['dtype']:9} {kind:14} {case:30} {found['times as long']['torch']:.2f}x", flush=True)
    result = {
        "machine": machine(),
        "shape": f"batch {BATCH}, width {WIDTH}, {HEADS} heads",
        "lead of oneDNN over the BLAS": {
            product: round(_products._lead(product, 1), 3) for product in ("linear", "weight gradient")
        },
        "rows": rows,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
