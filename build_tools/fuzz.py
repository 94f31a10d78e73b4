"""Random calls of ours and of torch side by side: ``python -m build_tools.fuzz --calls 20000``.

Each call draws shapes, masks, options, dtype and memory layout, runs forward and backward here and in torch, and
compares both with torch in float64. What counts as a difference is the two-reference rule of tests/tolerance.py: our
error may be twice torch's, the larger of two evaluations, plus 8 eps of the largest number (64 eps in float64, where
torch is compared with itself). A difference that a rule of docs/contract.md explains is counted under that rule; any
other is printed with the seed that draws it again, and makes the exit status 1.
"""

import argparse
import json
import logging
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import crossmodal

DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Call(NamedTuple):
    """One random call; the functions take leaves and give outputs."""

    ours: Callable[..., list[Tensor]]
    torchs: Callable[..., list[Tensor]]
    leaves: list[Tensor]  # float64 numbers, rounded to dtype
    dtype: torch.dtype
    nothing_seen: bool  # whether some query may attend to nothing, where torch gives NaN
    text: str


def dense(draw: random.Random) -> Call:
    """scaled_dot_product_attention."""
    batch, heads, seqlen_q, seqlen_k = (draw.choice((1, 1, 2, 3)), draw.choice((1, 2, 4)), size(draw), size(draw))
    grouped = draw.random() < 0.2
    heads_k = draw.choice([h for h in (1, 2, 4) if heads % h == 0]) if grouped else heads
    head_dim, head_dim_v = draw.choice((1, 3, 8, 16, 40)), draw.choice((2, 8, 16))
    mask = random_mask(draw, batch, heads, seqlen_q, seqlen_k)
    options: dict[str, Any] = {
        "is_causal": mask is None and draw.random() < 0.3,
        "scale": draw.choice((None, None, 0.3)),
        "enable_gqa": grouped,
    }
    shapes = [(batch, heads, seqlen_q, head_dim), (batch, heads_k, seqlen_k, head_dim)]
    dtype = draw.choice(DTYPES)
    leaves = [random_leaf(draw, shape, dtype) for shape in (*shapes, (batch, heads_k, seqlen_k, head_dim_v))]

    def run(function: Callable[..., Any]) -> Callable[..., list[Tensor]]:
        def call(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
            term = mask.to(q.dtype) if mask is not None and mask.is_floating_point() else mask
            return [function(q, k, v, attn_mask=term, **options)]

        return call

    text = (
        f"sdpa {[tuple(t.shape) for t in leaves]} {dtype} mask {None if mask is None else tuple(mask.shape)} {options}"
    )
    return Call(run(crossmodal.attention), run(F.scaled_dot_product_attention), leaves, dtype, hides_all(mask), text)


def module(draw: random.Random) -> Call:
    """torch.nn.MultiheadAttention."""
    heads = draw.choice((1, 2, 4))
    embed, batch, seqlen_q, seqlen_k = heads * draw.choice((1, 4, 8)), draw.choice((1, 2, 3)), size(draw), size(draw)
    kind = draw.choice(("self", "cross", "three"))
    if kind == "self":
        seqlen_k = seqlen_q
    settings: dict[str, Any] = {
        "bias": draw.random() < 0.8, "batch_first": draw.random() < 0.5, "add_bias_kv": draw.random() < 0.2,
        "add_zero_attn": draw.random() < 0.2,
    }  # fmt: skip
    if kind == "three":
        settings.update(kdim=draw.choice((embed, 5)), vdim=draw.choice((embed, 6)))
    padding = None if draw.random() < 0.5 else torch.rand(batch, seqlen_k) < draw.choice((0.3, 0.9))
    mask = None if draw.random() < 0.5 else torch.rand(seqlen_q, seqlen_k) < draw.choice((0.3, 0.9))
    if mask is not None and padding is None and draw.random() < 0.4:
        mask = torch.randn(seqlen_q, seqlen_k)
    dtype = draw.choice(DTYPES)
    exact = nn.MultiheadAttention(embed, heads, dtype=torch.float64, **settings)
    modules = {
        d: [cls(embed, heads, dtype=d, **settings) for cls in (crossmodal.nn.MultiheadAttention, nn.MultiheadAttention)]
        for d in {dtype, torch.float64}
    }
    rounded = {n: p.to(dtype).double() for n, p in exact.state_dict().items()}
    for pair in modules.values():
        for each in pair:
            each.load_state_dict(rounded)
    names = list(dict(exact.named_parameters()))
    widths = (embed, settings.get("kdim", embed), settings.get("vdim", embed))
    inputs = [(batch, n, w) for n, w in zip((seqlen_q, seqlen_k, seqlen_k), widths, strict=True)]
    if not settings["batch_first"]:
        inputs = [(n, b, w) for b, n, w in inputs]
    count = {"self": 1, "cross": 2, "three": 3}[kind]
    leaves = [random_leaf(draw, shape, dtype) for shape in inputs[:count]] + [rounded[n] for n in names]
    weights, average = draw.random() < 0.5, draw.random() < 0.5

    def run(which: int) -> Callable[..., list[Tensor]]:
        def call(*leaves: Tensor) -> list[Tensor]:
            given, parameters = leaves[:count], dict(zip(names, leaves[count:], strict=True))
            query, key, value = {1: given * 3, 2: (given[0], given[-1], given[-1]), 3: given}[count]
            term = mask.to(query.dtype) if mask is not None and mask.is_floating_point() else mask
            keywords = {
                "key_padding_mask": padding, "attn_mask": term, "need_weights": weights,
                "average_attn_weights": average,
            }  # fmt: skip
            called = torch.func.functional_call(modules[query.dtype][which], parameters, (query, key, value), keywords)
            return [t for t in called if t is not None]

        return call

    hidden = torch.zeros(batch, 1, seqlen_k, dtype=torch.bool) if padding is None else padding[:, None]
    hidden = hidden | mask if mask is not None and mask.dtype == torch.bool else hidden
    alone = bool(hidden.all(-1).any()) and not settings["add_bias_kv"] and not settings["add_zero_attn"]
    masks = f"padding {padding is not None} mask {None if mask is None else mask.dtype} weights {weights} {average}"
    text = f"mha {kind} {embed} {heads} {(batch, seqlen_q, seqlen_k)} {dtype} {settings} {masks}"
    return Call(run(0), run(1), leaves, dtype, alone, text)


def nested(draw: random.Random) -> Call:
    """scaled_dot_product_attention of jagged tensors."""
    batch, heads, head_dim = draw.choice((1, 2, 5)), draw.choice((1, 2, 4)), draw.choice((4, 8, 16))
    lengths = [[draw.randint(1, 9) for _ in range(batch)] for _ in range(2)]
    if draw.random() < 0.5:
        lengths[1] = lengths[0]
    causal = lengths[0] == lengths[1] and draw.random() < 0.3
    dtype = draw.choice((torch.float32, torch.float32, torch.float64))
    totals = [sum(n) for n in lengths]
    leaves = [random_leaf(draw, (total, heads, head_dim), dtype) for total in (totals[0], totals[1], totals[1])]
    offsets = [torch.tensor([0, *n]).cumsum(0) for n in lengths]

    def run(function: Callable[..., Any]) -> Callable[..., list[Tensor]]:
        def call(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
            of_key = offsets[0] if lengths[0] == lengths[1] else offsets[1]
            jagged = [
                torch.nested.nested_tensor_from_jagged(t, ends).transpose(1, 2)
                for t, ends in ((q, offsets[0]), (k, of_key), (v, of_key))
            ]
            return [function(*jagged, is_causal=causal).transpose(1, 2).values()]

        return call

    text = f"nested {lengths} {heads} {head_dim} {dtype} causal {causal}"
    return Call(run(crossmodal.attention), run(F.scaled_dot_product_attention), leaves, dtype, False, text)


FAMILIES: dict[str, Callable[[random.Random], Call]] = {
    "scaled_dot_product_attention": dense, "nn.MultiheadAttention": module, "nested tensors": nested,
}  # fmt: skip


def size(draw: random.Random) -> int:
    return draw.choice((1, 2, 3, 5, 8, 17, 33))


def random_leaf(draw: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Numbers that ``dtype`` holds, as float64, in one of several memory orders."""
    leaf = torch.randn(shape).to(dtype).double()
    if len(shape) == 4 and draw.random() < 0.5:
        leaf = leaf.transpose(1, 2).contiguous().transpose(1, 2)
    return leaf


def random_mask(draw: random.Random, batch: int, heads: int, seqlen_q: int, seqlen_k: int) -> Tensor | None:
    if draw.random() < 0.4:
        return None
    full = (batch, heads, seqlen_q, seqlen_k)
    shape = tuple(n if draw.random() < 0.6 else 1 for n in full)[draw.choice((0, 0, 2)) :]
    return torch.randn(shape) if draw.random() < 0.4 else torch.rand(shape) < draw.choice((0.5, 0.9))


def hides_all(mask: Tensor | None) -> bool:
    return mask is not None and mask.dtype == torch.bool and bool((~mask).all(-1).any())


def results(function: Callable[..., list[Tensor]], leaves: list[Tensor], dtype: torch.dtype) -> list[Tensor] | str:
    """Outputs and the gradient of each leaf, in float64; or the error."""
    try:
        own = [t.to(dtype).detach().requires_grad_() for t in leaves]
        outputs = function(*own)
        generator = torch.Generator().manual_seed(0)
        loss = sum((t * torch.randn(t.shape, generator=generator).to(dtype)).sum() for t in outputs)
        gradients = torch.autograd.grad(loss, own, allow_unused=True)  # type: ignore[arg-type]
        found = [*outputs, *(torch.zeros_like(t) if g is None else g for g, t in zip(gradients, own, strict=True))]
        return [t.detach().double() for t in found]
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"


def verdict(call: Call) -> str:
    """ "agrees", the rule that explains a difference, or "unexplained: ..."."""
    ours, theirs = results(call.ours, call.leaves, call.dtype), results(call.torchs, call.leaves, call.dtype)
    exact = results(call.torchs, call.leaves, torch.float64)
    if isinstance(ours, str):
        return "both refuse" if isinstance(theirs, str) else f"unexplained: ours refuses: {ours}"
    if isinstance(theirs, str) or isinstance(exact, str):
        return f"torch refuses: {theirs if isinstance(theirs, str) else exact}"
    if call.nothing_seen:  # all gradients of torch may be NaN then
        return "a query that sees nothing" if all(t.isfinite().all() for t in ours) else "unexplained: not finite"
    eps = torch.finfo(call.dtype).eps
    for i, (a, b, e) in enumerate(zip(ours, theirs, exact, strict=True)):
        if a.shape != e.shape:
            return f"unexplained: shape {tuple(a.shape)} of result {i}, torch {tuple(e.shape)}"
        if a.numel() == 0:
            continue
        error, reference = float((a - e).abs().max()), float((b - e).abs().max())
        if not e.isfinite().all():
            return "torch gives NaN or Inf" if a.isfinite().all() else "unexplained: not finite"
        # Of float64, torch's own result is all there is to compare with, as inexact as ours.
        units = 64 if call.dtype == torch.float64 else 8
        allowed = 2 * reference + units * eps * max(1.0, float(e.abs().max()))
        if not error <= allowed:  # perhaps torch was lucky: what it gets wrong when it adds in another order counts too
            with sdpa_kernel(SDPBackend.MATH):
                again = results(call.torchs, call.leaves, call.dtype)
            if not isinstance(again, str):
                allowed = max(allowed, allowed + 2 * (float((again[i] - e).abs().max()) - reference))
        if not error <= allowed:
            return f"unexplained: error {error:.3g} of result {i}, allowed {allowed:.3g}"
    return "agrees"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the counts")
    arguments = parser.parse_args()
    logging.getLogger("torch").setLevel(logging.ERROR)  # which backends of torch refuse nested tensors, each time
    warnings.simplefilter("ignore")
    counts: dict[str, Counter[str]] = {family: Counter() for family in FAMILIES}
    unexplained = []
    for seed in range(arguments.seed, arguments.seed + arguments.calls):
        draw = random.Random(seed)
        torch.manual_seed(seed)
        family = draw.choice(list(FAMILIES))
        call = FAMILIES[family](draw)
        found = verdict(call)
        counts[family][found.partition(":")[0] if found.startswith("unexplained") else found] += 1
        if found.startswith("unexplained"):
            unexplained.append({"seed": seed, "call": call.text, "found": found})
            print(f"seed {seed}: {found}\n  {call.text}", flush=True)
    result = {
        "calls": arguments.calls, "first seed": arguments.seed, "torch": torch.__version__,
        "counts": {family: dict(counter.most_common()) for family, counter in counts.items()},
        "unexplained": unexplained,
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
