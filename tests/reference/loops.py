"""Attention in nothing but loops and `math`, one number at a time: what the reference means, for every argument."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from crossmodal import Source


class Looped(NamedTuple):
    out: Tensor
    lse: Tensor
    mass: Tensor
    weights: Tensor  # over the padded concatenation of the present sources


def term_at(term: Tensor, full: tuple[int, ...], b: int, h: int, i: int, j: int) -> float | bool:
    return term.expand(full)[b, h, i, j].item()


def fuse_in_loops(
    query: Tensor,
    sources: list[Source | None],
    *,
    scale: float,
    is_causal: bool = False,
    causal_align: str = "upper_left",
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    sink: Tensor | None = None,
    query_lengths: Tensor | None = None,
    dropped: Tensor | None = None,
) -> Looped:
    """4-D tensors; `dropped` holds factors of the weights, (batch, num_heads, seqlen_q, all keys)."""
    batch, num_heads, seqlen_q, _ = query.shape
    present = [s for s in sources if s is not None]
    total, width = sum(s.key.shape[2] for s in present), present[0].value.shape[3]
    out = torch.zeros(batch, num_heads, seqlen_q, width, dtype=torch.float64)
    lse = torch.full((batch, num_heads, seqlen_q), -math.inf, dtype=torch.float64)
    mass = torch.zeros(batch, num_heads, seqlen_q, len(sources), dtype=torch.float64)
    weights = torch.zeros(batch, num_heads, seqlen_q, total, dtype=torch.float64)

    for b in range(batch):
        for h in range(num_heads):
            for i in range(seqlen_q):
                if query_lengths is not None and i >= query_lengths[b]:
                    continue
                exponentials = []  # (slot, position in the concatenation, exp(score), value row)
                start = 0
                for slot, source in enumerate(sources):
                    if source is None:
                        continue
                    seqlen_k = source.key.shape[2]
                    head = h // (num_heads // source.key.shape[1])
                    length = seqlen_k if source.lengths is None else int(source.lengths[b])
                    at = i  # the position that causal and window compare with
                    if causal_align == "lower_right":
                        at += length - (seqlen_q if query_lengths is None else int(query_lengths[b]))
                    for j in range(length):
                        if is_causal and j > at:
                            continue
                        if window_size[0] >= 0 and j < at - window_size[0]:
                            continue
                        if window_size[1] >= 0 and j > at + window_size[1]:
                            continue
                        score = scale * sum(
                            query[b, h, i, d].item() * source.key[b, head, j, d].item() for d in range(query.shape[3])
                        )
                        if softcap > 0:
                            score = softcap * math.tanh(score / softcap)
                        hidden = False
                        for term in (source.mask, source.bias):
                            if term is None:
                                continue
                            value = term_at(term, (batch, num_heads, seqlen_q, seqlen_k), b, h, i, j)
                            if term.dtype == torch.bool:
                                hidden = hidden or not value
                            else:
                                hidden = hidden or value == -math.inf
                                score += value
                        if not hidden:
                            exponentials.append((slot, start + j, math.exp(score), source.value[b, head, j]))
                    start += seqlen_k
                denominator = sum(e for _, _, e, _ in exponentials)
                if sink is not None:
                    denominator += math.exp(sink[h].item())
                if denominator == 0:
                    continue
                lse[b, h, i] = math.log(denominator)
                for slot, position, exponential, value in exponentials:
                    weight = exponential / denominator
                    weights[b, h, i, position] = weight
                    mass[b, h, i, slot] += weight
                    kept = 1.0 if dropped is None else dropped[b, h, i, position].item()
                    out[b, h, i] += kept * weight * value
    return Looped(out, lse, mass, weights)
