"""Random problems over the whole argument space, each checked by the two-reference rule.

`pytest tests/test_random.py --runs 100000` draws that many fresh ones; without it the same 1,100 are drawn each time,
so that a red run is always the change's fault.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossmodal import _library
from tests.accuracy import check_fusion, check_weighted_sum
from tests.conftest import USABLE_ISAS
from tests.problems import LAYOUTS, Fusion, Modality, Term, WeightedSum

SHARES = {"fuse": 600, "attention": 300, "weighted_sum": 200}

DTYPES = st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float64])
LENGTH_DTYPES = st.sampled_from([None, None, torch.int32, torch.int64])
BATCHES, HEADS = st.sampled_from([1, 2, 3, 0]), st.sampled_from([1, 2, 3])
QUERIES = st.sampled_from([1, 2, 3, 5, 17, 33, 65, 130, 0])
KEYS = st.sampled_from([1, 2, 7, 16, 33, 77, 270, 530, 0])
WIDTHS = st.sampled_from([1, 3, 8, 16, 20, 33, 64, 80, 0])
LAYOUT = st.sampled_from(LAYOUTS)
# Scores reach about 30 at scale 1; beyond, rounding of the scores themselves decides, whoever computes them.
SCALES = st.sampled_from([None, None, 1.0, 0.0, -0.5])


@st.composite
def terms(draw, lowest: bool):
    broadcast = draw(st.tuples(*[st.booleans()] * 4))
    return Term(
        dtype=draw(st.sampled_from([torch.bool, torch.float32, torch.bfloat16])),
        broadcast=broadcast,
        layout=draw(LAYOUT),
        hides=draw(st.sampled_from([0.0, 0.3, 1.0])),
        lowest=draw(st.sampled_from([0.0, 0.2])) if lowest else 0.0,
        leading=2 if broadcast[0] and broadcast[1] and draw(st.booleans()) else 4,
    )


@st.composite
def modalities(draw, bias: bool):
    return Modality(
        seqlen=draw(KEYS),
        lengths=draw(LENGTH_DTYPES),
        mask=draw(st.none() | terms(lowest=True)),
        bias=draw(st.none() | terms(lowest=False)) if bias else None,
        key_layout=draw(LAYOUT),
        value_layout=draw(LAYOUT),
    )


def subsets(*names: str):
    return st.frozensets(st.sampled_from(names), min_size=1)


@st.composite
def fusions(draw, as_attention: bool):
    if as_attention:
        sources = (draw(modalities(bias=False)),)
    else:
        present = draw(st.lists(modalities(bias=True), min_size=1, max_size=3))
        at = draw(st.integers(0, len(present)))
        absent = [None] if draw(st.booleans()) else []
        sources = (*present[:at], *absent, *present[at:])
    return Fusion(
        modalities=sources,
        dtype=draw(DTYPES),
        batch=draw(BATCHES),
        heads=draw(HEADS),
        seqlen_q=draw(QUERIES),
        head_dim=draw(WIDTHS),
        head_dim_v=draw(WIDTHS),
        query_layout=draw(LAYOUT),
        dout_layout=draw(LAYOUT),
        scale=draw(SCALES),
        is_causal=as_attention and draw(st.booleans()),
        as_attention=as_attention,
        differentiated=draw(subsets("query", "key", "value", "mask", "bias")),
        asked=draw(subsets("out", "lse") if as_attention else subsets("out", "lse", "mass")),
        seed=draw(st.integers(0, 2**32)),
    )


@st.composite
def weighted_sums(draw):
    mask = draw(st.none() | terms(lowest=False))
    return WeightedSum(
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
        mask=mask if mask is not None and mask.dtype == torch.bool else None,
        differentiated=draw(subsets("weights", "values")),
        seed=draw(st.integers(0, 2**32)),
    )


CASES = {
    "fuse": (fusions(as_attention=False), check_fusion),
    "attention": (fusions(as_attention=True), check_fusion),
    "weighted_sum": (weighted_sums(), check_weighted_sum),
}


@pytest.mark.slow
@pytest.mark.parametrize("op", CASES)
def test_random_problems_are_as_accurate_as_torch(op, request):
    problems, check = CASES[op]
    runs = request.config.getoption("--runs")
    share = SHARES[op] if runs is None else max(1, runs * SHARES[op] // sum(SHARES.values()))
    before = _library.active_isa()
    count = 0

    @settings(
        max_examples=share,
        derandomize=runs is None,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(problem=problems, isa=st.sampled_from(USABLE_ISAS))
    def run(problem, isa):
        nonlocal count
        count += 1
        _library.select_isa(isa)
        check(problem)

    try:
        run()
    finally:
        _library.select_isa(before)
    assert count >= share
