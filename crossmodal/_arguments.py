"""Public signatures -> canonical problems. One function per public function."""

from collections.abc import Sequence

import torch
from torch import Tensor

from crossmodal._causal_bias import Causality, without_causal_bias
from crossmodal._fold import fold, fold_term, folded, heads_of, lead_shape
from crossmodal._problem import FusionProblem, KeySource, SoftmaxWeightedSumProblem, VarlenProblem, WeightedSumProblem
from crossmodal._validate import (
    MOST_KEYS,
    check_beside_query,
    check_causal_align,
    check_cu_seqlens,
    check_device,
    check_flag,
    check_float,
    check_is_source,
    check_lengths,
    check_max_seqlen,
    check_packed,
    check_probability,
    check_query,
    check_rank,
    check_same_dtype,
    check_same_width,
    check_scale,
    check_seed,
    check_sink,
    check_softcap,
    check_source,
    check_tensor,
    check_window,
    dtype_under_autocast,
    is_int,
)
from crossmodal.types import Source

REDUCTIONS = (None, "heads", "keys", "entropy", "mass")


def attention_problem(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    key_lengths: Tensor | None,
    query_lengths: Tensor | None,
    causal_align: str,
    window_size: tuple[int, int],
    softcap: float,
    sink: Tensor | None,
    dropout_seed: Tensor | None,
) -> FusionProblem:
    """The checked problem that a call of ``attention`` describes: one source, whose fields have the caller's names."""
    attn_mask, is_causal, causal_align = without_causal_bias(
        Causality(attn_mask, is_causal, causal_align),
        query,
        key,
        beside_others=key_lengths is not None or query_lengths is not None or window_size != (-1, -1),
    )
    return fusion_problem(
        query,
        [Source(key, value, key_lengths, attn_mask)],
        names=[""],
        allow_gqa=enable_gqa,
        scale=scale,
        is_causal=is_causal,
        causal_align=causal_align,
        window_size=window_size,
        softcap=softcap,
        sink=sink,
        query_lengths=query_lengths,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
    )


def fuse_problem(
    query: Tensor,
    sources: Sequence[Source | None],
    dropout_p: float,
    scale: float | None,
    query_lengths: Tensor | None,
    softcap: float,
    sink: Tensor | None,
    dropout_seed: Tensor | None,
) -> FusionProblem:
    """The checked problem that a call of ``fuse`` describes."""
    if isinstance(sources, Source) or not isinstance(sources, list | tuple):
        raise TypeError(f"sources must be a list of crossmodal.Source or None, got {type(sources).__name__}")
    return fusion_problem(
        query,
        sources,
        names=[f"sources[{i}]." for i in range(len(sources))],
        allow_gqa=True,
        scale=scale,
        query_lengths=query_lengths,
        softcap=softcap,
        sink=sink,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
    )


def associate_problem(
    query: Tensor,
    key_or_sources: Tensor | Sequence[Source | None],
    reduce: str | None,
    topk: int | None,
    scale: float | None,
    key_lengths: Tensor | None,
    query_lengths: Tensor | None,
    attn_mask: Tensor | None,
    softcap: float,
    sink: Tensor | None,
) -> FusionProblem:
    """The checked problem that a call of ``associate`` describes; keys stand in for values, which it does not read."""
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduce!r}")
    if topk is not None:
        if not is_int(topk):
            raise TypeError(f"topk must be an int or None, got {type(topk).__name__}")
        if not 1 <= topk <= MOST_KEYS:
            raise ValueError(f"topk must lie in [1, {MOST_KEYS}], got {topk}")
        if reduce is not None:
            raise ValueError(f"topk and reduce exclude each other, got topk={topk} and reduce={reduce!r}")
    if isinstance(key_or_sources, Tensor):
        key = key_or_sources
        sources: Sequence[Source | None] = [Source(key, key, key_lengths, attn_mask)]
        names = [""]
    else:
        if isinstance(key_or_sources, Source) or not isinstance(key_or_sources, list | tuple):
            raise TypeError(
                "key_or_sources must be a key tensor or a list of crossmodal.Source, got "
                f"{type(key_or_sources).__name__}"
            )
        if key_lengths is not None or attn_mask is not None:
            raise ValueError("key_lengths and attn_mask go with a key tensor; a Source carries its own")
        names = [f"key_or_sources[{i}]." for i in range(len(key_or_sources))]
        for name, source in zip(names, key_or_sources, strict=True):
            if source is not None:
                check_is_source(name, source)
        sources = [None if s is None else s._replace(value=s.key) for s in key_or_sources]
    return fusion_problem(
        query,
        sources,
        names=names,
        allow_gqa=True,
        scale=scale,
        query_lengths=query_lengths,
        softcap=softcap,
        sink=sink,
    )


def fusion_problem(
    query: Tensor,
    sources: Sequence[Source | None],
    *,
    names: Sequence[str],
    allow_gqa: bool,
    scale: float | None,
    is_causal: bool = False,
    causal_align: str = "upper_left",
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    sink: Tensor | None = None,
    query_lengths: Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_seed: Tensor | None = None,
) -> FusionProblem:
    """Checks everything and folds leading dimensions into ``(batch, num_heads)``.

    ``names[i]`` is the prefix that errors use for source ``i``: ``"sources[1]."``, or ``""`` for plain attention,
    where the fields have the caller's own names.
    """
    check_query(query)
    check_flag("is_causal", is_causal)
    present = [(i, source) for i, source in enumerate(sources) if source is not None]
    for i, source in present:
        check_source(query, source, names[i])
    check_same_width(present, names)
    scale = check_scale(scale, query.shape[-1])
    dropout_p = check_probability("dropout_p", dropout_p)
    check_causal_align(causal_align)
    window_size = check_window(window_size)
    softcap = check_softcap(softcap)

    query, present = autocast(query, present)
    lead = lead_shape(query, present, names, allow_gqa)
    batch, num_heads = folded(lead)
    seqlen_q = query.shape[-2]
    if sink is not None:
        check_sink(sink, num_heads, query)
    if query_lengths is not None:
        check_lengths("query_lengths", query_lengths, batch, seqlen_q, query)
    if dropout_seed is not None:
        check_seed(dropout_seed, query)

    canonical = []
    for i, source in present:
        prefix = names[i]
        seqlen_k = source.key.shape[-2]
        if source.lengths is not None:
            name = f"{prefix}lengths" if prefix else "key_lengths"
            check_lengths(name, source.lengths, batch, seqlen_k, query)
        terms = []
        for field, term in (
            (f"{prefix}mask" if prefix else "attn_mask", source.mask),
            (f"{prefix}bias", source.bias),
        ):
            if term is not None:
                terms.append(fold_term(field, term, lead, seqlen_q, seqlen_k, query))
        heads_k = heads_of(source.key, num_heads, lead, allow_gqa)
        canonical.append(
            KeySource(
                fold(source.key, lead, heads_k),
                fold(source.value, lead, heads_k),
                source.lengths,
                tuple(terms),
                i,
            )
        )
    return FusionProblem(
        query=fold(query, lead, num_heads),
        sources=tuple(canonical),
        num_slots=len(sources),
        lead_shape=lead,
        scale=scale,
        is_causal=bool(is_causal),
        causal_align=causal_align,
        window_size=window_size,
        softcap=softcap,
        sink=sink,
        query_lengths=query_lengths,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
    )


def varlen_problem(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    causal_align: str,
    window_size: tuple[int, int],
    softcap: float,
    sink: Tensor | None,
    dropout_seed: Tensor | None,
) -> VarlenProblem:
    """The checked problem that a call of ``attention_varlen`` describes."""
    check_query(query)
    check_packed("query", query)
    for name, tensor in (("key", key), ("value", value)):
        check_beside_query(name, tensor, query)
        check_packed(name, tensor)
    if key.shape[2] != query.shape[2]:
        raise ValueError(
            f"key must have query's head_dim {query.shape[2]}, got {key.shape[2]} (shape {tuple(key.shape)})"
        )
    if value.shape[0] != key.shape[0]:
        raise ValueError(f"value must have as many tokens as key, {key.shape[0]}, got {value.shape[0]}")
    num_heads, heads, heads_v = query.shape[1], key.shape[1], value.shape[1]
    if enable_gqa:
        if heads != num_heads and (heads == 0 or num_heads % heads != 0):
            raise ValueError(f"key: num_heads_k must divide query's num_heads {num_heads}, got {heads}")
    elif heads != num_heads:
        raise ValueError(f"key must have query's num_heads {num_heads}, or enable_gqa=True, got {heads}")
    if heads_v != heads:
        raise ValueError(f"value must have key's num_heads {heads}, got {heads_v}")
    scale = check_scale(scale, query.shape[-1])
    dropout_p = check_probability("dropout_p", dropout_p)
    check_causal_align(causal_align)
    window_size = check_window(window_size)
    softcap = check_softcap(softcap)
    for suffix, cu_seqlens, max_seqlen, packed in (
        ("_q", cu_seqlens_q, max_seqlen_q, query),
        ("_k", cu_seqlens_k, max_seqlen_k, key),
    ):
        check_max_seqlen(f"max_seqlen{suffix}", max_seqlen)
        check_cu_seqlens(f"cu_seqlens{suffix}", cu_seqlens, packed.shape[0], max_seqlen, suffix, query)
    if cu_seqlens_k.shape != cu_seqlens_q.shape:
        raise ValueError(
            f"cu_seqlens_k must have cu_seqlens_q's shape {tuple(cu_seqlens_q.shape)}, got {tuple(cu_seqlens_k.shape)}"
        )
    if sink is not None:
        check_sink(sink, num_heads, query)
    if dropout_seed is not None:
        check_seed(dropout_seed, query)
    query, [(_, source)] = autocast(query, [(0, Source(key, value))])
    return VarlenProblem(
        query=query,
        key=source.key,
        value=source.value,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        scale=scale,
        is_causal=bool(is_causal),
        causal_align=causal_align,
        window_size=window_size,
        softcap=softcap,
        sink=sink,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
    )


def weighted_sum_problem(
    weights: Tensor, values: Tensor, lengths: Tensor | None, mask: Tensor | None
) -> WeightedSumProblem:
    """The checked problem that a call of ``weighted_sum`` describes."""
    return WeightedSumProblem(*_weighting("weights", weights, values, lengths, mask))


def softmax_weighted_sum_problem(
    scores: Tensor, values: Tensor, lengths: Tensor | None, mask: Tensor | None, scale: float | None
) -> SoftmaxWeightedSumProblem:
    """The checked problem that a call of ``softmax_weighted_sum`` describes."""
    canonical = _weighting("scores", scores, values, lengths, mask)
    # Scores come finished: without a scale they are taken as they are, whatever their number.
    return SoftmaxWeightedSumProblem(*canonical, scale=1.0 if scale is None else check_scale(scale, 1))


def _weighting(
    name: str, weights: Tensor, values: Tensor, lengths: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, tuple[int, ...]]:
    """Checks weights or scores, called ``name``, beside values, and folds leading dimensions into (batch, num_heads).

    Returns weights, values, lengths, mask and the leading dimensions of the result.
    """
    for operand, tensor in ((name, weights), ("values", values)):
        check_tensor(operand, tensor)
        check_float(operand, tensor)
        check_rank(operand, tensor)
    check_device("values", values, weights, owner=name)
    check_same_dtype("values", values, weights, name)
    if weights.shape[-1] != values.shape[-2]:
        raise ValueError(
            f"values must have seqlen_k = {weights.shape[-1]} rows as {name} has columns, got {values.shape[-2]} "
            f"({name} {tuple(weights.shape)}, values {tuple(values.shape)})"
        )
    try:
        lead = tuple(torch.broadcast_shapes(weights.shape[:-2], values.shape[:-2]))
    except RuntimeError:
        raise ValueError(
            f"leading dimensions of {name} {tuple(weights.shape)} and values {tuple(values.shape)} do not broadcast"
        ) from None
    batch, num_heads = folded(lead)
    seqlen_q, seqlen_k = weights.shape[-2], weights.shape[-1]
    if lengths is not None:
        check_lengths("lengths", lengths, batch, seqlen_k, weights, owner=name)
    if mask is not None:
        check_tensor("mask", mask)
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool (True = take part), got {mask.dtype}")
        mask = fold_term("mask", mask, lead, seqlen_q, seqlen_k, weights, owner=name)
    weights, values = (t.to(dtype_under_autocast(t)) for t in (weights, values))
    return fold(weights, lead, num_heads), fold(values, lead, num_heads), lengths, mask, lead


def autocast(query: Tensor, present: list[tuple[int, Source]]) -> tuple[Tensor, list[tuple[int, Source]]]:
    """Casts query, key and value as autocast casts SDPA's; masks and lengths stay."""
    dtype = dtype_under_autocast(query)
    if all(t.dtype == dtype for t in (query, *(t for _, s in present for t in (s.key, s.value)))):
        return query, present
    return query.to(dtype), [(i, s._replace(key=s.key.to(dtype), value=s.value.to(dtype))) for i, s in present]
