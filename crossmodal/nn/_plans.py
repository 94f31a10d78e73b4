"""What a call of a module would run: the products around its attention, and the plan of the attention."""

from typing import Any

import torch
from torch import Tensor

from crossmodal.explain import Plan, explain, plans
from crossmodal.nn import _products
from crossmodal.nn._linear import needs_gradient, refusal
from crossmodal.nn._padding import worth_skipping
from crossmodal.nn._ragged import nested_like
from crossmodal.nn.attention_pool import AttentionPool
from crossmodal.nn.cross_modal_attention import CrossModalAttention
from crossmodal.nn.linear import Linear
from crossmodal.nn.multihead_attention import MultiheadAttention
from crossmodal.nn.packed_weights import are_packed
from crossmodal.ops.attention import attention
from crossmodal.ops.fuse import fuse
from crossmodal.types import Source


@plans(Linear)
def _linear_plan(arguments: dict[str, Any]) -> Plan:
    module, input = arguments["module"], arguments["input"]
    reason = refusal(input, module.weight, module.bias)
    if reason is None:
        return Plan(
            "nn.Linear",
            "oneDNN",
            {"product": _product(input, module.weight), **_lead(input, module.weight, module.bias)},
        )
    return Plan("nn.Linear", "torch", {"product": _product(input, module.weight)}, [("oneDNN", reason)])


@plans(MultiheadAttention)
def _multihead_attention_plan(arguments: dict[str, Any]) -> Plan:
    module: MultiheadAttention = arguments["module"]
    query, key = arguments["query"], arguments["key"]
    if query.is_nested:
        inner = explain(attention, *(_heads_of_nested(module, arguments[n]) for n in ("query", "key", "value")))
        return _around("nn.MultiheadAttention", inner, {"padding": "none: nested tensors"}, [])
    batched = query.dim() == 3
    module._check_shapes(query, key, arguments["value"], batched)
    width = module.embed_dim
    products: list[tuple[Tensor, Any]]
    if module.in_proj_weight is None:
        names = ("query", "key", "value")
        products = [(arguments[n], getattr(module, f"{n[0]}_proj_weight")) for n in names]
    elif query is key:
        products = [(query, module.in_proj_weight)]
    else:
        products = [(query, module.in_proj_weight[:width]), (key, module.in_proj_weight[width:])]
    padding = arguments["key_padding_mask"]
    details: dict[str, Any] = {}
    if padding is not None:
        skipped = (
            batched
            and not arguments["need_weights"]
            and arguments["attn_mask"] is None
            and module.bias_k is None
            and not module.add_zero_attn
            and worth_skipping(padding, query, key, module.batch_first)
        )
        details["padding"] = "left out before the projections" if skipped else "hidden in the attention"
    q, k = (
        _heads(t if batched else t.unsqueeze(0), module, batch_first=module.batch_first or not batched)
        for t in (query, key)
    )
    return _around("nn.MultiheadAttention", explain(attention, q, k, k), details, products)


@plans(CrossModalAttention)
def _cross_modal_attention_plan(arguments: dict[str, Any]) -> Plan:
    module: CrossModalAttention = arguments["module"]
    query, lengths, masks = arguments["query"], arguments["lengths"] or {}, arguments["masks"] or {}
    sources: list[Source | None] = []
    products: list[tuple[Tensor, Any]] = [(query, module.to_query.weight)]
    for name in module.modalities:
        tokens = arguments["sources"].get(name)
        if tokens is None:
            sources.append(None)
            continue
        key = _heads(tokens, module)
        sources.append(Source(key, key, lengths.get(name), masks.get(name)))
        products.append((tokens, module.to_key_value[name].weight))
    inner = explain(fuse, _heads(query, module), sources, return_mass=arguments["return_mass"])
    return _around("nn.CrossModalAttention", inner, {}, products)


@plans(AttentionPool)
def _attention_pool_plan(arguments: dict[str, Any]) -> Plan:
    module: AttentionPool = arguments["module"]
    tokens, mask, lengths = (arguments[name] for name in ("tokens", "mask", "lengths"))
    absorbed = module._absorbed(tokens, mask)
    if absorbed is not None:
        rows = tokens.unsqueeze(1)
        inner = explain(
            attention, absorbed.query(len(tokens)), rows, rows, mask, key_lengths=lengths, scale=absorbed.scale
        )
        return _around("nn.AttentionPool", inner, {"projections": "of queries and results, not of tokens"}, [])
    key = _heads(tokens, module, width=module.queries.shape[1])
    query = key.new_empty((tokens.shape[0], module.num_heads, len(module.queries), key.shape[3]))
    inner = explain(attention, query, key, key, mask, key_lengths=lengths)
    return _around("nn.AttentionPool", inner, {}, [(tokens, module.to_key_value.weight)])


def _around(op: str, inner: Plan, details: dict[str, Any], products: list[tuple[Tensor, Any]]) -> Plan:
    refused = list(inner.refused)
    for input, weight in products:
        reason = refusal(input, weight)
        library = ", ".join(["oneDNN", *_lead(input, weight).values()]) if reason is None else "torch"
        details[f"projection {_product(input, weight)}"] = library
        if reason is not None and ("oneDNN", reason) not in refused:
            refused.append(("oneDNN", reason))
    return Plan(op, inner.kernel, {**details, **inner.details}, refused)


def _lead(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> dict[str, str]:
    """What oneDNN has ahead, by name."""
    ahead = "no pass for the bias"
    if input.dtype == torch.float32:
        ahead = f"{_products.lead():.2f} times as fast as the BLAS"
    is_packed = are_packed() and not needs_gradient(input, weight, bias)
    return {"lead": ahead, "weight": "packed once"} if is_packed else {"lead": ahead}


def _product(input: Tensor, weight: Tensor) -> str:
    return f"{input.numel() // max(1, input.shape[-1])} x {weight.shape[1]} x {weight.shape[0]}"


def _heads(tokens: Tensor, module: Any, *, batch_first: bool = True, width: int | None = None) -> Tensor:
    """Of the shape that projected tokens have; never read."""
    batch, seqlen = tokens.shape[:2] if batch_first else tokens.shape[:2][::-1]
    width = module.embed_dim if width is None else width
    return tokens.new_empty((batch, module.num_heads, seqlen, width // module.num_heads))


def _heads_of_nested(module: MultiheadAttention, nested: Any) -> Tensor:
    values = nested.values() if nested.layout == torch.jagged else torch.cat(nested.unbind())
    if nested.layout != torch.jagged:
        nested = torch.nested.as_nested_tensor(list(nested.unbind()), layout=torch.jagged)
    empty = nested_like(values.new_empty((values.shape[0], module.embed_dim)), nested)
    return empty.unflatten(-1, (module.num_heads, module.head_dim)).transpose(1, 2)
