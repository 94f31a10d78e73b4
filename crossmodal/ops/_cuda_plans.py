"""Checked problem -> what the library says about the kernels that a GPU would run it with."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossmodal import _library
from crossmodal._problem import FusionProblem, VarlenProblem
from crossmodal.ops._precision import allows_tf32

# A warp multiplies 16 rows, with the instructions of sm_80 or by multiply-adds (csrc/cuda/engine.h); few queries are
# multiplied one by one (csrc/cuda/few_queries.h).
_MMA = {"multiply": "mma.sync m16n8k16", "tile": (16, 8, 16)}
_TF32 = {"multiply": "mma.sync m16n8k8, factors rounded to tf32", "tile": (16, 8, 8)}
_FMA = {"multiply": "multiply-adds", "tile": (16, 8, 8)}
_MULTIPLY: dict[str, dict[str, Any]] = {
    "sm80_mma": _MMA,
    "sm80_mma_tf32": _TF32,
    "sm80_fma": _FMA,
    "sm80_few_queries": {"multiply": "multiply-adds"},
}

# Facts of a forward kernel, as `explain` calls them.
_FACTS = {
    "block_m": "block_m",
    "block_n": "block_n",
    "stages": "stages",
    "rows_at_once": "queries at once",
    "lanes_to_a_row": "lanes to a row",
    "warps_to_a_row": "warps to a row",
    "shares": "shares of keys",
    "order": "tiles",
}
CUDA_FACTS = (*_FACTS.values(), "backward")

# A kernel of its own, without matrix instructions: csrc/cuda/weighted_sum.cu.
WEIGHTED_SUM = {"kernel": "sm80_weighted_sum", "multiply": "multiply-adds", "refused": []}


class Traits(NamedTuple):
    """What of a problem, beside its sizes, decides which kernels run."""

    num_heads_k: int  # 0 where sources differ
    is_plain: bool = True  # products are scores but for the scale
    is_exact: bool = False  # gradients of biases, sinks or weights are asked for
    is_ragged: bool = False  # packed, or with lengths
    allow_tf32: bool = False


def traits_of_fusion(problem: FusionProblem, *, of_weights: bool) -> Traits:
    heads = {source.key.shape[1] for source in problem.sources}
    terms = [term for source in problem.sources for term in source.terms]
    return Traits(
        heads.pop() if len(heads) == 1 else 0,
        is_plain=not terms and not of_weights and _is_plain(problem),
        is_exact=of_weights or any(t.requires_grad for t in [*terms, problem.sink] if t is not None),
        is_ragged=problem.query_lengths is not None or any(s.lengths is not None for s in problem.sources),
        allow_tf32=not of_weights and allows_tf32(problem.query),
    )


def traits_of_varlen(problem: VarlenProblem) -> Traits:
    wants_sink = problem.sink is not None and problem.sink.requires_grad
    return Traits(
        problem.key.shape[1],
        is_plain=_is_plain(problem),
        is_exact=wants_sink,
        is_ragged=True,
        allow_tf32=allows_tf32(problem.query),
    )


def _is_plain(problem: FusionProblem | VarlenProblem) -> bool:
    return problem.softcap == 0 and problem.sink is None and problem.dropout_p == 0 and problem.scale > 0


def cuda_facts(operand: Tensor, sizes: tuple[int, int, int, int, int, int], traits: Traits) -> dict[str, Any]:
    """``sizes``: batch, heads, queries, keys, head_dim and that of values."""
    batch, num_heads, *others = sizes
    dtype = str(operand.dtype).removeprefix("torch.")
    plan = _library.cuda_attention_plan(
        dtype, batch, num_heads, traits.num_heads_k, *others, traits.is_plain, traits.is_exact, traits.is_ragged,
        traits.allow_tf32,
        *device_of(operand),
    )  # fmt: skip
    forward, backward = plan["forward"], plan["backward"]
    refused = forward["refused"] + [
        {"kernel": f"{refusal['kernel']} in backward", "reason": refusal["reason"]} for refusal in backward["refused"]
    ]
    facts = {name: forward[key] for key, name in _FACTS.items() if key in forward}
    chosen = {"kernel": forward["kernel"], "refused": refused, "backward": _backward_text(backward)}
    return {**facts, **_MULTIPLY[forward["kernel"]], **chosen}


def _backward_text(backward: dict[str, Any]) -> str:
    shares = backward["shares"]
    return backward["kernel"] + (f", {shares} shares of keys" if shares > 1 else "")


class Device(NamedTuple):
    """What of a GPU decides which kernels run; memory in bytes."""

    arch: int
    multiprocessors: int
    shared_bytes: int  # that a block may ask for
    l2_bytes: int


_H100 = Device(90, 132, 227 << 10, 50 << 20)


def device_of(operand: Tensor) -> Device:
    """That of a tensor; an H100 where there is no GPU to ask."""
    if not torch.cuda.is_available():
        return _H100
    properties: Any = torch.cuda.get_device_properties(operand.device)  # torch's stub leaves out the optin
    arch = 10 * properties.major + properties.minor
    return Device(
        arch, properties.multi_processor_count, properties.shared_memory_per_block_optin, properties.L2_cache_size
    )
