"""Checked problem -> `Plan`: what the library says about its kernels, and what keeps them from running."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crossmodal import _library
from crossmodal._problem import FusionProblem, SoftmaxWeightedSumProblem, VarlenProblem, WeightedSumProblem
from crossmodal._validate import values_are_readable
from crossmodal.explain import Plan
from crossmodal.ops._cuda_plans import CUDA_FACTS, WEIGHTED_SUM, Traits, cuda_facts, traits_of_fusion, traits_of_varlen

# Facts of `attention_plan` that hold for every kernel of an instruction set, and those that are attention's own.
_OF_ALL = ("multiply", "lanes", "tile")
_OF_ATTENTION = (*_OF_ALL, "block_m", "block_n", *CUDA_FACTS)

# Why the gradient of a gradient goes through the reference, of operators that have no kernel for it.
_NO_SECOND_DERIVATIVE = ("this function has no kernel for them",)


def fusion_plan(
    op: str,
    problem: FusionProblem,
    reasons: Sequence[str],
    *,
    reads_values: bool = True,
    second_derivative_reasons: Sequence[str] = _NO_SECOND_DERIVATIVE,
) -> Plan:
    """The plan of one joint softmax; ``reasons`` say why no kernel takes it."""
    seqlen_k = sum(source.key.shape[2] for source in problem.sources)
    batch, num_heads, seqlen_q, head_dim = problem.query.shape
    sizes = _sizes(problem.query, batch, num_heads, seqlen_q, seqlen_k, head_dim)
    if not problem.sources:
        return Plan(op, "none", {**sizes, "because": "no source is present"})
    head_dim_v = problem.head_dim_v if reads_values else 0
    pairs = batch * seqlen_q * seqlen_k / (2 if problem.is_causal else 1)
    sizes["gflop"] = _gflop(num_heads, pairs, head_dim + head_dim_v)
    sizes_of_all = (batch, num_heads, seqlen_q, seqlen_k, head_dim, head_dim_v)
    traits = traits_of_fusion(problem, of_weights=not reads_values)
    facts = _kernel_facts(problem.query, sizes_of_all, traits, is_causal=problem.is_causal)
    return _plan(op, problem.query, sizes, facts, _OF_ATTENTION, reasons, second_derivative_reasons)


def varlen_plan(
    op: str, problem: VarlenProblem, reasons: Sequence[str], second_derivative_reasons: Sequence[str]
) -> Plan:
    """The plan of packed sequences: sizes are those of the longest ones, operations those of all."""
    batch, num_heads, head_dim = problem.batch, problem.num_heads, problem.query.shape[2]
    seqlen_q, seqlen_k = problem.max_seqlen_q, problem.max_seqlen_k
    head_dim_v = problem.value.shape[2]
    sizes = _sizes(problem.query, batch, num_heads, seqlen_q, seqlen_k, head_dim)
    if values_are_readable(problem.cu_seqlens_q) and values_are_readable(problem.cu_seqlens_k):
        pairs = int((problem.cu_seqlens_q.long().diff() * problem.cu_seqlens_k.long().diff()).sum())
        sizes["gflop"] = _gflop(num_heads, pairs / (2 if problem.is_causal else 1), head_dim + head_dim_v)
    sizes_of_longest = (batch, num_heads, seqlen_q, seqlen_k, head_dim, head_dim_v)
    facts = _kernel_facts(problem.query, sizes_of_longest, traits_of_varlen(problem), is_causal=problem.is_causal)
    return _plan(op, problem.query, sizes, facts, _OF_ATTENTION, reasons, second_derivative_reasons)


def weighted_plan(op: str, problem: WeightedSumProblem | SoftmaxWeightedSumProblem, reasons: Sequence[str]) -> Plan:
    """The plan of a sum by given weights or scores."""
    values = problem.values
    batch, num_heads, seqlen_k, head_dim = values.shape
    seqlen_q = problem[0].shape[2]
    sizes = _sizes(values, batch, num_heads, seqlen_q, seqlen_k, head_dim)
    sizes["gflop"] = _gflop(num_heads, batch * seqlen_q * seqlen_k, head_dim)
    if isinstance(problem, WeightedSumProblem) and values.is_cuda:
        return _plan(op, values, sizes, WEIGHTED_SUM, _OF_ALL, reasons)
    # On a GPU, attention without features whose scores are a bias.
    head_dim_qk = 0 if values.is_cuda else head_dim
    traits = Traits(num_heads, is_plain=False, is_exact=problem[0].requires_grad, is_ragged=problem.lengths is not None)
    facts = _kernel_facts(values, (batch, num_heads, seqlen_q, seqlen_k, head_dim_qk, head_dim), traits)
    return _plan(op, values, sizes, facts, (*_OF_ALL, *CUDA_FACTS), reasons)


def _sizes(operand: Tensor, batch: int, num_heads: int, seqlen_q: int, seqlen_k: int, head_dim: int) -> dict[str, Any]:
    return {
        "problem": f"batch {batch}, heads {num_heads}, queries {seqlen_q}, keys {seqlen_k}, head_dim {head_dim}",
        "dtype": _name(operand.dtype),
        "device": operand.device.type,
    }


def _gflop(num_heads: int, pairs: float, widths: int) -> float:
    """A product and a sum for each feature that a query and a key, or a weight and a value, meet in."""
    return 2.0 * num_heads * pairs * widths / 1e9


def _kernel_facts(
    operand: Tensor,
    sizes: tuple[int, int, int, int, int, int],
    traits: Traits,
    *,
    is_causal: bool = False,
) -> dict[str, Any]:
    if operand.is_cuda:
        return cuda_facts(operand, sizes, traits)
    if operand.device.type != "cpu":
        return {"kernel": operand.device.type, "refused": []}
    return _library.attention_plan(_name(operand.dtype), *sizes, is_causal=is_causal)


def _plan(
    op: str,
    operand: Tensor,
    sizes: dict[str, Any],
    facts: dict[str, Any],
    wanted: Sequence[str],
    reasons: Sequence[str],
    second_derivative_reasons: Sequence[str] = _NO_SECOND_DERIVATIVE,
) -> Plan:
    on_cpu = operand.device.type == "cpu"
    candidate = _library.active_isa() if on_cpu else facts["kernel"]
    refused = [(entry["kernel"], entry["reason"]) for entry in facts["refused"]]
    if reasons and not on_cpu:
        refused = [(candidate, reason) for reason in reasons]  # whatever the others would say: it does not come to that
    elif reasons:
        # The library may have refused the candidate as well, for the dtype; the reasons say so too.
        refused = [entry for entry in refused if entry[0] != candidate] + [(candidate, reason) for reason in reasons]
    kernel = "reference" if reasons else facts["kernel"]
    if kernel == "reference":
        return Plan(op, kernel, sizes, refused)
    details = {**sizes, **({"instruction set": candidate} if on_cpu else {})}
    details.update({name: facts[name] for name in wanted if name in facts})
    by_formula = "; ".join(second_derivative_reasons)
    details["second derivatives"] = f"plain torch: {by_formula}" if by_formula else "compiled"
    return Plan(op, kernel, details, refused)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
