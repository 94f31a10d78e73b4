"""Pooling by learned queries: ``python -m benchmarks.pool --json docs/trust/pool.json``.

``crossmodal.nn.AttentionPool`` beside three ways to write it in torch: projections around SDPA, torch's
MultiheadAttention asked by the same queries, and, by hand, the products in the order that leaves the tokens as they
are. Output projections included, all with the same weights; inference under no_grad, and a training step, forward and
backward to tokens and weights. One thread.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

import crossmodal
from benchmarks.paired import machine, paired_times, summary

SUBJECT = "crossmodal"


class Shape(NamedTuple):
    """Of a pool, and of the tokens it is given."""

    name: str
    batch: int
    tokens: int
    width: int
    heads: int
    queries: int


SHAPES = (
    Shape("image, one query", 32, 197, 768, 12, 1),
    Shape("image, one sample", 1, 197, 768, 12, 1),
    Shape("image, 8 queries", 32, 197, 768, 12, 8),
    Shape("text, one query", 32, 77, 512, 8, 1),
    Shape("small, 4 queries", 128, 25, 48, 4, 4),
)

Way = Callable[[Any, Tensor], Tensor]


def projected(pool: crossmodal.nn.AttentionPool, tokens: Tensor) -> Tensor:
    key, value = linear(tokens, pool.to_key_value.weight, pool.to_key_value.bias).chunk(2, dim=-1)
    query = pool.queries.expand(len(tokens), -1, -1)
    heads = (t.unflatten(2, (pool.num_heads, -1)).transpose(1, 2) for t in (query, key, value))
    return linear(scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2), pool.to_out.weight)


def by_hand(pool: crossmodal.nn.AttentionPool, tokens: Tensor) -> Tensor:
    heads, count = pool.num_heads, len(pool.queries)
    queries = pool.queries.unflatten(1, (heads, -1)).transpose(0, 1)
    key, value = (part.unflatten(0, (heads, -1)) for part in pool.to_key_value.weight.chunk(2))
    asked = (queries @ key).flatten(0, 1) * queries.shape[2] ** -0.5  # (heads * queries, width)
    pooled = (asked @ tokens.mT).softmax(-1) @ tokens  # (batch, heads * queries, width)
    found = torch.einsum("bhqf,hdf->bqhd", pooled.unflatten(1, (heads, count)), value)
    return linear(found.flatten(2) + pool.to_key_value.bias.chunk(2)[1], pool.to_out.weight)


def ways(shape: Shape) -> dict[str, tuple[nn.Module, Way]]:
    pool = crossmodal.nn.AttentionPool(shape.width, shape.heads, shape.queries)
    module = nn.MultiheadAttention(shape.width, shape.heads, batch_first=True)
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.cat([torch.eye(shape.width), pool.to_key_value.weight]))
        module.in_proj_bias.copy_(torch.cat([torch.zeros(shape.width), pool.to_key_value.bias]))
        module.out_proj.weight.copy_(pool.to_out.weight)
    query = nn.Parameter(pool.queries.detach().clone())

    def asked(module: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
        found: Tensor = module(query.expand(len(tokens), -1, -1), tokens, tokens, need_weights=False)[0]
        return found

    return {
        SUBJECT: (pool, lambda pool, tokens: pool(tokens)),
        "projections and SDPA": (pool, projected),
        "nn.MultiheadAttention": (module, asked),
        "torch, reordered by hand": (pool, by_hand),
    }


def inference(module: nn.Module, way: Way, tokens: Tensor) -> Callable[[], Any]:
    @torch.no_grad()
    def call() -> None:
        module.eval()
        way(module, tokens)

    return call


def training(module: nn.Module, way: Way, tokens: Tensor, dout: Tensor) -> Callable[[], Any]:
    leaf = tokens.clone().requires_grad_()

    def call() -> None:
        module.train()
        way(module, leaf).backward(dout)
        module.zero_grad()
        leaf.grad = None

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description="pooling by learned queries")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for shape in SHAPES:
        tokens = torch.randn(shape.batch, shape.tokens, shape.width)
        found = ways(shape)
        answers = {name: way(module, tokens) for name, (module, way) in found.items()}
        for name, answer in answers.items():
            torch.testing.assert_close(answer, answers[SUBJECT], rtol=1e-3, atol=1e-4, msg=name)
        dout = torch.randn_like(answers[SUBJECT])
        for kind in ("inference", "training step"):
            calls = {
                name: inference(*one, tokens) if kind == "inference" else training(*one, tokens, dout)
                for name, one in found.items()
            }
            rows.append({**shape._asdict(), "kind": kind, **summary(paired_times(calls, arguments.rounds), SUBJECT)})
            print(shape.name, kind, rows[-1]["milliseconds"], rows[-1]["times as long"], flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
