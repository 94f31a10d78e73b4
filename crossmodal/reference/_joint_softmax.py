"""The joint softmax over all keys of all sources, in plain torch: the definition that every kernel is tested against.

    s_ij = scale * <q_i, k_j>,  optionally softcap * tanh(s_ij / softcap),  + float masks and biases
    w_ij = exp(s_ij) / (sum_j' exp(s_ij') + exp(sink)),  lse_i = log(sum_j' exp(s_ij') + exp(sink))

over the keys j that query i may see (Vaswani et al., 2017, "Attention Is All You Need", eq. 1). The L_q x L_k tensor is
written in full here; that is the price that the kernels do not pay.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from crossmodal._problem import FusionProblem, KeySource


class JointSoftmax(NamedTuple):
    weights: Tensor  # (batch, num_heads, seqlen_q, all keys), float32 or float64, before dropout
    lse: Tensor  # (batch, num_heads, seqlen_q)
    values: Tensor  # (batch, num_heads, all keys, head_dim_v); rows that no query sees are zero
    source_sizes: tuple[int, ...]
    dead: Tensor  # (batch, num_heads, seqlen_q, 1) queries that see no key: what flows back to them is ignored


def joint_softmax(problem: FusionProblem) -> JointSoftmax:
    """Scores, visibility and softmax of a problem with at least one present source."""
    query = problem.query
    accumulate = torch.float64 if query.dtype == torch.float64 else torch.float32
    alive = _alive_queries(problem)
    visible = [_visible(problem, source) for source in problem.sources]
    if alive is not None:
        visible = [seen & alive for seen in visible]
    dead = torch.ones((*query.shape[:3], 1), dtype=torch.bool, device=query.device)
    for seen in visible:
        dead = dead & ~seen.any(dim=3, keepdim=True)
    # A query that sees nothing may hold NaN.
    query = query.masked_fill(dead, 0.0)
    # The largest float16 is 65504, which the products of an ordinary head may exceed.
    wide = torch.float32 if query.dtype == torch.float16 else query.dtype

    scores, values = [], []
    for source, seen in zip(problem.sources, visible, strict=True):
        # What no query of its (b, h) sees may hold NaN: it is replaced before it meets arithmetic.
        hidden_key = ~seen.any(dim=2).unsqueeze(-1)
        key = _per_query_head(source.key, problem.num_heads).masked_fill(hidden_key, 0.0)
        # A key that only some queries see must not leak through 0 * NaN in a gradient either.
        broken = ~torch.isfinite(key).all(dim=-1)
        key = key.masked_fill(broken.unsqueeze(-1), 0.0)
        score = (query.to(wide) @ key.to(wide).transpose(-1, -2)).to(accumulate) * problem.scale
        if problem.softcap > 0.0:
            score = problem.softcap * torch.tanh(score / problem.softcap)
        for term in source.terms:
            if term.dtype != torch.bool:
                score = score + term.to(accumulate)
        score = score.masked_fill(broken.unsqueeze(2), float("nan"))
        scores.append(score.masked_fill(~seen, float("-inf")))
        values.append(_per_query_head(source.value, problem.num_heads).masked_fill(hidden_key, 0.0))

    score = torch.cat(scores, dim=-1)
    weights, lse = softmax(score, problem.sink)
    if alive is not None:
        # A sink is no reason to report lse for queries that do not exist.
        lse = lse.masked_fill(~alive.squeeze(-1), float("-inf"))
    return JointSoftmax(weights, lse, torch.cat(values, dim=2), tuple(s.key.shape[2] for s in problem.sources), dead)


def source_mass(problem: FusionProblem, joint: JointSoftmax) -> Tensor:
    """(batch, num_heads, seqlen_q, num_sources): weights summed per source, absent sources a zero column."""
    parts = iter(joint.weights.split(joint.source_sizes, dim=-1))
    slots = {source.slot for source in problem.sources}
    zero = joint.weights.new_zeros(joint.weights.shape[:3])
    return torch.stack([next(parts).sum(-1) if i in slots else zero for i in range(problem.num_slots)], dim=-1)


def softmax(score: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights and lse of (..., seqlen_q, keys) scores; a row of nothing but -inf has weights 0 and lse -inf."""
    # The maximum only guards against overflow; it cancels, so no gradient flows through it.
    if score.shape[-1] > 0:
        peak = score.detach().amax(dim=-1, keepdim=True)
    else:
        peak = score.new_full((*score.shape[:-1], 1), float("-inf"))
    if sink is not None:
        sink = sink.to(score.dtype)[:, None, None]
        peak = torch.maximum(peak, sink.detach())
    peak = peak.masked_fill(peak == float("-inf"), 0.0)
    exponentials = torch.exp(score - peak)
    total = exponentials.sum(dim=-1, keepdim=True)
    if sink is not None:
        total = total + torch.exp(sink - peak)
    empty = total == 0.0
    weights = exponentials / total.masked_fill(empty, 1.0)
    lse = (peak + torch.log(total.masked_fill(empty, 1.0))).masked_fill(empty, float("-inf"))
    return weights, lse.squeeze(-1)


def _per_query_head(tensor: Tensor, num_heads: int) -> Tensor:
    """Grouped-query attention: each key head serves num_heads / num_heads_k neighbouring query heads."""
    if tensor.shape[1] == num_heads:
        return tensor
    return tensor.repeat_interleave(num_heads // tensor.shape[1], dim=1)


def _alive_queries(problem: FusionProblem) -> Tensor | None:
    """(batch, 1, seqlen_q, 1): queries before query_lengths."""
    if problem.query_lengths is None:
        return None
    row = torch.arange(problem.seqlen_q, device=problem.query.device)
    return (row < problem.query_lengths[:, None])[:, None, :, None]


def _visible(problem: FusionProblem, source: KeySource) -> Tensor:
    """(batch, num_heads, seqlen_q, seqlen_k) bool: lengths, masks, causal and window intersected."""
    batch, num_heads, seqlen_q, seqlen_k = (
        problem.batch,
        problem.num_heads,
        problem.seqlen_q,
        source.key.shape[2],
    )
    device = problem.query.device
    j = torch.arange(seqlen_k, device=device)
    seen = torch.ones((batch, num_heads, seqlen_q, seqlen_k), dtype=torch.bool, device=device)
    if source.lengths is not None:
        seen = seen & (j < source.lengths[:, None])[:, None, None, :]
    for term in source.terms:
        seen = seen & (term if term.dtype == torch.bool else term != float("-inf"))
    left, right = problem.window_size
    if problem.is_causal:
        right = 0 if right < 0 else min(right, 0)
    if left >= 0 or right >= 0:
        i = torch.arange(seqlen_q, device=device)[None, :, None]
        if problem.causal_align == "lower_right":
            len_k = source.lengths if source.lengths is not None else torch.full((batch,), seqlen_k, device=device)
            len_q = (
                problem.query_lengths
                if problem.query_lengths is not None
                else torch.full((batch,), seqlen_q, device=device)
            )
            i = i + (len_k - len_q)[:, None, None]
        if right >= 0:
            seen = seen & (j <= i + right)[:, None]
        if left >= 0:
            seen = seen & (j >= i - left)[:, None]
    return seen
