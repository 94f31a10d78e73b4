"""The reference of `attention_varlen` against loops over single numbers, one sequence at a time."""

import math

import pytest
import torch

from crossmodal import Source
from crossmodal.reference import attention_varlen
from crossmodal.reference._dropout import dropout_keep
from tests.reference.loops import fuse_in_loops

SINK = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)
ENDS_Q = torch.tensor([0, 3, 3, 4, 8], dtype=torch.int32)  # the second sequence has no query
ENDS_K = torch.tensor([0, 5, 7, 7, 10], dtype=torch.int32)  # the third has no key
TOTAL_Q, TOTAL_K = 9, 11  # one row behind the last sequence

OPTIONS = {
    "nothing": {},
    "scale": {"scale": -0.7},
    "causal": {"is_causal": True},
    "lower_right": {"is_causal": True, "causal_align": "lower_right"},
    "window": {"window_size": (1, 2)},
    "window at lower_right": {"window_size": (1, 1), "causal_align": "lower_right"},
    "softcap": {"softcap": 0.5},
    "sink": {"sink": SINK},
}


def inputs(heads_k: int = 4) -> list[torch.Tensor]:
    shapes = [(TOTAL_Q, 4, 3), (TOTAL_K, heads_k, 3), (TOTAL_K, heads_k, 2)]
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def in_loops(q, k, v, scale=None, dropped=None, **options):
    """One call of the loops for each sequence, as (batch, heads, rows, width) with batch 1."""
    out = torch.zeros(TOTAL_Q, 4, v.shape[2], dtype=torch.float64)
    lse = torch.full((4, TOTAL_Q), -math.inf, dtype=torch.float64)
    for b in range(len(ENDS_Q) - 1):
        rows, keys = slice(*ENDS_Q[b : b + 2].tolist()), slice(*ENDS_K[b : b + 2].tolist())
        if rows.start == rows.stop:
            continue
        part = [t.transpose(0, 1)[None] for t in (q[rows], k[keys], v[keys])]
        found = fuse_in_loops(
            part[0],
            [Source(*part[1:])],
            scale=3**-0.5 if scale is None else scale,
            dropped=None if dropped is None else dropped[b : b + 1],
            **options,
        )
        out[rows], lse[:, rows] = found.out[0].transpose(0, 1), found.lse[0]
    return out, lse


@pytest.mark.parametrize("name", OPTIONS)
def test_equals_loops(name):
    q, k, v = inputs()
    got = attention_varlen(q, k, v, ENDS_Q, ENDS_K, 4, 5, **OPTIONS[name], return_lse=True)
    torch.testing.assert_close(got, in_loops(q, k, v, **OPTIONS[name]))


@pytest.mark.parametrize("heads_k", [1, 2])
def test_grouped_query_attention_equals_loops(heads_k):
    q, k, v = inputs(heads_k)
    got = attention_varlen(q, k, v, ENDS_Q, ENDS_K, 4, 5, enable_gqa=True, return_lse=True)
    torch.testing.assert_close(got, in_loops(q, k, v))


def test_dropout_counts_from_the_start_of_each_sequence():
    q, k, v = inputs()
    seed = torch.tensor([7])
    got = attention_varlen(q, k, v, ENDS_Q, ENDS_K, 4, 5, dropout_p=0.4, dropout_seed=seed)
    factors = dropout_keep(seed, 0.4, 4, 4, 4, 5) / 0.6
    torch.testing.assert_close(got, in_loops(q, k, v, dropped=factors)[0])


@pytest.mark.parametrize(("max_seqlen_q", "max_seqlen_k"), [(4, 6), (9, 5), (1000, 1000)])
def test_more_room_than_needed_changes_nothing(max_seqlen_q, max_seqlen_k):
    q, k, v = inputs()
    options = {"dropout_p": 0.4, "dropout_seed": torch.tensor([7]), "return_lse": True}
    wanted = attention_varlen(q, k, v, ENDS_Q, ENDS_K, 4, 5, **options)
    torch.testing.assert_close(attention_varlen(q, k, v, ENDS_Q, ENDS_K, max_seqlen_q, max_seqlen_k, **options), wanted)


@pytest.mark.parametrize("name", OPTIONS)
def test_passes_gradcheck(name):
    leaves = [t[:, :2].requires_grad_() for t in inputs()]
    options = {n: o[:2] if n == "sink" else o for n, o in OPTIONS[name].items()}
    assert torch.autograd.gradcheck(
        lambda *x: attention_varlen(*x, ENDS_Q, ENDS_K, 4, 5, **options),
        leaves,
    )


def test_rows_of_no_sequence_are_zero_and_may_be_nan():
    q, k, v = inputs()
    clean = attention_varlen(q, k, v, ENDS_Q, ENDS_K, 4, 5, sink=SINK, return_lse=True)
    q[8:], k[10:], v[10:] = math.nan, math.nan, math.inf
    leaves = [t.requires_grad_() for t in (q, k, v)]
    out, lse = attention_varlen(*leaves, ENDS_Q, ENDS_K, 4, 5, sink=SINK, return_lse=True)
    assert torch.equal(out, clean[0]) and torch.equal(lse, clean[1])
    assert (out[8] == 0).all() and (lse[:, 8] == -math.inf).all()
    dout, dlse = torch.randn_like(out), torch.randn_like(lse)
    dout[8:], dlse[:, 8:] = math.nan, math.nan
    gradients = torch.autograd.grad((out, lse), leaves, (dout, dlse))
    assert all(torch.isfinite(g).all() for g in gradients)
    assert all((g[rows:] == 0).all() for g, rows in zip(gradients, (8, 10, 10), strict=True))
