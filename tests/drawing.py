"""What hypothesis draws: every argument of every public function, in any combination."""

import math
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st

from tests.problems import LAYOUTS, Association, Fusion, Modality, Sink, Term, Varlen, WeightedSum

DTYPES = st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64])
TERM_DTYPES = [torch.bool, torch.float32, torch.bfloat16, torch.float16, torch.float64]
LENGTH_DTYPES = st.sampled_from([None, None, torch.int32, torch.int64])
LAYOUT = st.sampled_from(LAYOUTS)
# Mostly small, at times across the blocks of the kernels: 64 queries or 512 a panel, 256 keys a chunk.
QUERIES = st.sampled_from([1, 2, 3, 5, 17, 33, 64, 65, 130, 0, 1, 4, 20, 9, 36, 513])
KEYS = st.sampled_from([1, 2, 7, 16, 33, 77, 0, 1, 5, 64, 256, 257, 512, 530, 1030])
WIDTHS = st.sampled_from([1, 3, 8, 16, 20, 33, 64, 80, 1, 2, 4, 5, 8, 24, 32, 40, 48, 0])
# Of nothing there is little to test: each size is 0 in about one of twenty problems.
BATCHES = st.sampled_from([*[1, 2, 3] * 6, 0])
HEADS = st.sampled_from([*[1, 2, 3, 4, 6, 1, 2] * 3, 0])
# Scores reach about 30 at scale 1; beyond, rounding of the scores themselves decides, whoever computes them.
SCALES = st.sampled_from([None, None, 1.0, 0.0, -0.5])
SOFTCAPS = st.sampled_from([0.0, 0.0, 0.5, 5.0, 50.0])
DROPOUTS = st.sampled_from([0.0, 0.0, 0.0, 0.3, 0.9, 1.0])
DROPOUT_SEEDS = st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63)]) | st.integers(-(2**63), 2**63 - 1)
WINDOW_SIDES = st.sampled_from([-1, -1, 0, 1, 5, 40, 3000])
SINKS = st.none() | st.builds(
    Sink,
    dtype=st.sampled_from(TERM_DTYPES[1:]),
    offset=st.sampled_from([0.0, 0.0, 30.0, -30.0]),
    hides=st.sampled_from([0.0, 0.5]),
    strided=st.booleans(),
)
SEEDS = st.integers(0, 2**32)
# Operations of one forward pass, some forty of them a score; long doubles have no fast matrix product.
COST_LIMIT = {torch.float64: 100_000}
DEFAULT_COST_LIMIT = 2_000_000


@st.composite
def terms(draw: Any, lowest: bool) -> Term:
    broadcast = draw(st.tuples(*[st.booleans()] * 4))
    return Term(
        dtype=draw(st.sampled_from(TERM_DTYPES)),
        broadcast=broadcast,
        layout=draw(LAYOUT),
        hides=draw(st.sampled_from([0.0, 0.3, 0.0, 0.3, 0.7, 1.0])),
        lowest=draw(st.sampled_from([0.0, 0.2])) if lowest else 0.0,
        leading=2 if broadcast[0] and broadcast[1] and draw(st.booleans()) else 4,
    )


@st.composite
def modalities(draw: Any, heads: int, bias: bool) -> Modality:
    return Modality(
        seqlen=draw(KEYS),
        lengths=draw(LENGTH_DTYPES),
        mask=draw(st.none() | terms(lowest=True)),
        bias=draw(st.none() | terms(lowest=False)) if bias else None,
        key_layout=draw(LAYOUT),
        value_layout=draw(LAYOUT),
        heads_k=draw(groups(heads)),
    )


def groups(heads: int) -> st.SearchStrategy[int | None]:
    """Heads of the keys: half the time the query's own, without the flag for grouped queries."""
    return st.none() | st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0] or [None])


def subsets(*names: str) -> st.SearchStrategy[frozenset[str]]:
    return st.frozensets(st.sampled_from(names), min_size=1)


def positions(draw: Any) -> dict[str, Any]:
    """Arguments of the functions that know only one sequence of keys."""
    return {
        "is_causal": draw(st.booleans()),
        "causal_align": draw(st.sampled_from(["upper_left", "lower_right"])),
        "window_size": (draw(WINDOW_SIDES), draw(WINDOW_SIDES)),
    }


def dropouts(draw: Any) -> dict[str, Any]:
    return {"dropout_p": draw(DROPOUTS), "dropout_seed": draw(DROPOUT_SEEDS)}


@st.composite
def fusions(draw: Any, as_attention: bool, associated: bool = False) -> Fusion:
    heads = draw(HEADS)
    if as_attention:
        sources: tuple[Modality | None, ...] = (draw(modalities(heads, bias=False)),)
    else:
        sources = tuple(
            draw(st.lists(modalities(heads, bias=True), min_size=0 if draw(st.booleans()) else 1, max_size=3))
        )
        at = draw(st.integers(0, len(sources)))
        absent = [None] if not sources or draw(st.booleans()) else []
        sources = (*sources[:at], *absent, *sources[at:])
    problem = Fusion(
        modalities=sources,
        dtype=draw(DTYPES),
        batch=draw(BATCHES),
        heads=heads,
        seqlen_q=draw(QUERIES),
        head_dim=draw(WIDTHS),
        head_dim_v=draw(WIDTHS),
        query_layout=draw(LAYOUT),
        dout_layout=draw(LAYOUT),
        scale=draw(SCALES),
        softcap=draw(SOFTCAPS),
        sink=draw(SINKS),
        query_lengths=draw(LENGTH_DTYPES),
        poisoned=draw(st.booleans()),
        as_attention=as_attention,
        differentiated=draw(subsets("query", "key", "value", "mask", "bias", "sink")),
        asked=draw(subsets("out", "lse") if as_attention else subsets("out", "lse", "mass")),
        seed=draw(SEEDS),
        **(positions(draw) if as_attention and not associated else {}),
        **({} if associated else dropouts(draw)),
    )
    return affordable(problem)


def affordable(problem: Fusion) -> Fusion:
    """The same with fewer samples, heads and features where it would take long."""
    keys = sum(m.seqlen for m in problem.modalities if m is not None)
    limit = COST_LIMIT.get(problem.dtype, DEFAULT_COST_LIMIT)
    single = tuple(
        None if m is None else replace(m, heads_k=None if m.heads_k is None else 1) for m in problem.modalities
    )
    for change in (
        {},
        {"batch": min(problem.batch, 1)},
        {"head_dim": min(problem.head_dim, 16), "head_dim_v": min(problem.head_dim_v, 16)},
        {"heads": min(problem.heads, 1), "modalities": single},
        {"seqlen_q": min(problem.seqlen_q, 5)},
    ):
        problem = replace(problem, **change)
        area = problem.batch * problem.heads * problem.seqlen_q * keys
        if area * (problem.head_dim + problem.head_dim_v + 40) <= limit:
            break
    return problem


@st.composite
def associations(draw: Any) -> Association:
    topk = draw(st.none() | st.sampled_from([1, 2, 5, 40, 600]))
    return Association(
        fusion=draw(fusions(as_attention=draw(st.booleans()), associated=True)),
        reduce=draw(st.sampled_from([None, "heads", "keys", "entropy", "mass"])) if topk is None else None,
        topk=topk,
    )


@st.composite
def varlens(draw: Any) -> Varlen:
    heads, dtype, seqlens = draw(HEADS), draw(DTYPES), []
    # Products of two lengths, padded as the reference may pad them; long doubles have no fast matrix product.
    area = 3_000 if dtype == torch.float64 else 40_000
    for _ in range(draw(st.sampled_from([1, 2, 4, 1, 2, 3, 0]))):
        q, k = draw(st.sampled_from([1, 2, 5, 17, 0, 64, 65, 130])), draw(st.sampled_from([1, 7, 33, 77, 0, 257, 530]))
        longest_q, longest_k = (max([n, *(s[i] for s in seqlens)]) for i, n in enumerate((q, k)))
        if (len(seqlens) + 1) * longest_q * longest_k * heads <= area:
            seqlens.append((q, k))
    return Varlen(
        seqlens_q=tuple(q for q, _ in seqlens),
        seqlens_k=tuple(k for _, k in seqlens),
        beyond_q=draw(st.sampled_from([0, 3])),
        beyond_k=draw(st.sampled_from([0, 3])),
        longer=draw(st.sampled_from([0, 0, 1, 40])),
        dtype=dtype,
        heads=heads,
        heads_k=draw(groups(heads)),
        head_dim=draw(WIDTHS),
        head_dim_v=draw(WIDTHS),
        query_layout=draw(LAYOUT),
        key_layout=draw(LAYOUT),
        value_layout=draw(LAYOUT),
        dout_layout=draw(LAYOUT),
        scale=draw(SCALES),
        softcap=draw(SOFTCAPS),
        sink=draw(SINKS),
        poisoned=draw(st.booleans()),
        differentiated=draw(subsets("query", "key", "value", "sink")),
        asked=draw(subsets("out", "lse")),
        seed=draw(SEEDS),
        **positions(draw),
        **dropouts(draw),
    )


@st.composite
def weighted_sums(draw: Any, softmax: bool) -> WeightedSum:
    mask = draw(st.none() | terms(lowest=False))
    problem = WeightedSum(
        dtype=draw(DTYPES),
        batch=draw(BATCHES),
        heads=draw(HEADS),
        seqlen_q=draw(QUERIES),
        seqlen_k=draw(KEYS),
        head_dim=draw(WIDTHS),
        weights_layout=draw(LAYOUT),
        values_layout=draw(LAYOUT),
        dout_layout=draw(LAYOUT),
        lengths=draw(LENGTH_DTYPES),
        mask=None if mask is None else replace(mask, dtype=torch.bool),
        softmax=softmax,
        scale=draw(st.sampled_from([None, 1.0, 5.0, 0.0, -0.5])) if softmax else None,
        hides=draw(st.sampled_from([0.0, 0.3, 1.0])) if softmax else 0.0,
        poisoned=draw(st.booleans()),
        differentiated=draw(subsets("weights", "values")),
        seed=draw(SEEDS),
    )
    cost = math.prod([problem.batch, problem.heads, problem.seqlen_q, problem.seqlen_k, problem.head_dim])
    if cost > COST_LIMIT.get(problem.dtype, DEFAULT_COST_LIMIT):
        problem = replace(problem, batch=1, heads=1, head_dim=min(problem.head_dim, 8))
    return problem
