"""Runs problems through a namespace, `crossmodal` or `crossmodal.reference`: outputs and every gradient, by name."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tests.problems import Association, Fusion, FusionTensors, Varlen, WeightedSum
from tests.problems.varlen import VarlenTensors
from tests.problems.weighted_sum import WeightedSumTensors

Results = dict[str, Tensor]


def call_of(problem: Fusion | Varlen | WeightedSum | Association) -> Callable[..., Results]:
    if isinstance(problem, Association):
        return call_association
    if isinstance(problem, WeightedSum):
        return call_weighted_sum
    return call_varlen if isinstance(problem, Varlen) else call_fusion


def call_fusion(namespace: ModuleType, problem: Fusion, tensors: FusionTensors) -> Results:
    return _with_gradients(fusion_outputs(namespace, problem, tensors), tensors.cotangents, tensors.leaves())


def fusion_outputs(namespace: ModuleType, problem: Fusion, tensors: FusionTensors) -> Results:
    """out, lse and, of `fuse`, mass, with their graph."""
    options: dict[str, Any] = {
        "scale": problem.scale,
        "query_lengths": tensors.query_lengths,
        "softcap": problem.softcap,
        "sink": tensors.sink,
        "dropout_p": problem.dropout_p,
        "dropout_seed": torch.tensor([problem.dropout_seed]) if problem.dropout_p else None,
    }
    if problem.as_attention:
        (source,), (modality,) = tensors.sources, problem.modalities
        assert source is not None and source.bias is None and modality is not None
        out, lse = namespace.attention(
            tensors.query,
            source.key,
            source.value,
            source.mask,
            is_causal=problem.is_causal,
            enable_gqa=modality.heads_k is not None,
            key_lengths=source.lengths,
            causal_align=problem.causal_align,
            window_size=problem.window_size,
            return_lse=True,
            **options,
        )
        return {"out": out, "lse": lse}
    outputs: Results = namespace.fuse(
        tensors.query, tensors.sources, return_lse=True, return_mass=True, **options
    )._asdict()
    return outputs


def call_association(namespace: ModuleType, problem: Association, tensors: FusionTensors) -> Results:
    """Weights or their summary as `associated`; with `topk` the `indices` too."""
    result = _associate(namespace, problem.fusion, tensors, reduce=problem.reduce, topk=problem.topk)
    weights, indices = (result, None) if problem.topk is None else result
    results = _with_gradients({"associated": weights}, {"associated": problem.cotangent(weights)}, tensors.leaves())
    return results if indices is None else {**results, "indices": indices}


def call_links(namespace: ModuleType, problem: Association, tensors: FusionTensors, indices: Tensor) -> Results:
    """The weights of given links, 0 for -1, in place of those that `topk` would choose."""
    everything = _associate(namespace, problem.fusion, tensors)
    padded = torch.nn.functional.pad(everything, (0, 1))
    weights = padded.gather(-1, indices % padded.shape[-1])
    results = _with_gradients({"associated": weights}, {"associated": problem.cotangent(weights)}, tensors.leaves())
    return {**results, "all weights": everything.detach()}


def _associate(namespace: ModuleType, fusion: Fusion, tensors: FusionTensors, **options: Any) -> Any:
    keys: Any = tensors.sources
    if fusion.as_attention:
        (source,) = tensors.sources
        assert source is not None and source.bias is None
        keys = source.key
        options.update(key_lengths=source.lengths, attn_mask=source.mask)
    return namespace.associate(
        tensors.query,
        keys,
        scale=fusion.scale,
        query_lengths=tensors.query_lengths,
        softcap=fusion.softcap,
        sink=tensors.sink,
        **options,
    )


def call_varlen(namespace: ModuleType, problem: Varlen, tensors: VarlenTensors) -> Results:
    return _with_gradients(varlen_outputs(namespace, problem, tensors), tensors.cotangents, tensors.leaves())


def varlen_outputs(namespace: ModuleType, problem: Varlen, tensors: VarlenTensors) -> Results:
    """out and lse, with their graph."""
    out, lse = namespace.attention_varlen(
        tensors.query,
        tensors.key,
        tensors.value,
        tensors.cu_seqlens_q,
        tensors.cu_seqlens_k,
        tensors.max_seqlen_q,
        tensors.max_seqlen_k,
        dropout_p=problem.dropout_p,
        is_causal=problem.is_causal,
        scale=problem.scale,
        enable_gqa=problem.heads_k is not None,
        causal_align=problem.causal_align,
        window_size=problem.window_size,
        softcap=problem.softcap,
        sink=tensors.sink,
        return_lse=True,
        dropout_seed=torch.tensor([problem.dropout_seed]) if problem.dropout_p else None,
    )
    return {"out": out, "lse": lse}


def call_weighted_sum(namespace: ModuleType, problem: WeightedSum, tensors: WeightedSumTensors) -> Results:
    options: dict[str, Any] = {"lengths": tensors.lengths, "mask": tensors.mask}
    if problem.softmax:
        out = namespace.softmax_weighted_sum(tensors.weights, tensors.values, scale=problem.scale, **options)
    else:
        out = namespace.weighted_sum(tensors.weights, tensors.values, **options)
    return _with_gradients({"out": out}, tensors.cotangents, tensors.leaves())


def _with_gradients(outputs: Results, cotangents: Results, leaves: Results) -> Results:
    flowing = [(o, cotangents[n]) for n, o in outputs.items() if n in cotangents and o.requires_grad]
    found = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    if flowing and found:  # what does not depend on a leaf has gradient zero
        gradients = torch.autograd.grad(
            [o for o, _ in flowing], list(leaves.values()), [c for _, c in flowing], allow_unused=True
        )
        found.update({name: g for name, g in zip(found, gradients, strict=True) if g is not None})
    return {**{n: o.detach() for n, o in outputs.items()}, **found}
