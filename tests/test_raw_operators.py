"""Raw operators, called past the Python that checks: what would read or write out of bounds is refused."""

import pytest
import torch

OPS = torch.ops.crossmodal
Q, K, V = torch.zeros(2, 4, 5, 8), torch.zeros(2, 4, 7, 8), torch.zeros(2, 4, 7, 6)


def forward(query=Q, keys=(K,), values=(V,), key_lengths=(None,), terms=(), owners=(), rows=None, sink=None, seed=None,
            softcap=0.0, dropout_p=0.0, window=(-1, -1)):  # fmt: skip
    arguments = (query, keys, values, key_lengths, terms, owners, rows, sink, seed)
    return OPS.attention_fwd(*arguments, 1.0, softcap, dropout_p, window, False, False, False, True)


ATTENTION = {
    "query must have 4 dimensions": {"query": Q[0]},
    "at least one source is needed": {"keys": (), "values": (), "key_lengths": ()},
    "one entry per source": {"values": (V, V)},
    "key has size 1 in dimension 0, expected 2": {"keys": (K[:1],)},
    "number of key heads, 3, must divide that of query heads, 4": {"keys": (K[:, :3],)},
    "value has size 3 in dimension 2": {"values": (V[:, :, :3],)},
    "must have the same dtype": {"keys": (K.double(),)},
    "a mask or bias has size 6": {"terms": (torch.zeros(2, 4, 5, 6),), "owners": (0,)},
    "masks and biases must be bool or floating point": {"terms": (torch.zeros(2, 4, 5, 7).int(),), "owners": (0,)},
    "no source 1": {"terms": (torch.zeros(1, 1, 1, 1),), "owners": (1,)},
    "more than 2 terms for source 0": {"terms": (torch.zeros(1, 1, 1, 1),) * 3, "owners": (0, 0, 0)},
    "key_lengths must have one entry per sample": {"key_lengths": (torch.zeros(3).int(),)},
    "key_lengths must be int32 or int64": {"key_lengths": (torch.zeros(2),)},
    "query_lengths must have one entry per sample": {"rows": torch.zeros(3).int()},
    r"sink must be \(1 or batch, num_heads\)": {"sink": torch.zeros(3, 4)},
    "dropout needs a seed of one int64": {"dropout_p": 0.5},
    r"dropout_p must lie in \[0, 1\], got 1.5": {"dropout_p": 1.5},
    "window must have two entries, got 1": {"window": (3,)},
    "a window needs a single source, got 2": {
        "keys": (K, K), "values": (V, V), "key_lengths": (None, None), "window": (3, 0),
    },
}  # fmt: skip


@pytest.mark.parametrize("message", ATTENTION)
def test_attention_refuses(message):
    with pytest.raises(RuntimeError, match=message):
        forward(**ATTENTION[message])


def backward(**changes):
    out, lse, mass, statistics = forward()
    x = {"dout": out, "dlse": lse, "out": out, "statistics": statistics, "wanted": [1, 1, 1], **changes}
    none = (None, None, None)
    return OPS.attention_bwd(
        x["dout"], x["dlse"], None, Q, [K], [V], [None], [], [], *none, x["out"], x["statistics"], mass,
        1.0, 0.0, 0.0, [-1, -1], False, False, x["wanted"],
    )  # fmt: skip


BACKWARD = {
    "dout and out must have the shape and dtype of the output": {"dout": torch.zeros(2, 4, 5, 7)},
    "a gradient has 3 elements, expected 40": {"dlse": torch.zeros(3)},
    "statistics must come from forward": {"statistics": torch.zeros(2, 3)},
    "wanted must have 3 flags": {"wanted": [1, 1]},
}


@pytest.mark.parametrize("message", BACKWARD)
def test_attention_backward_refuses(message):
    with pytest.raises(RuntimeError, match=message):
        backward(**BACKWARD[message])


def double_backward(**changes):
    out, lse, _, statistics = forward()
    x = {
        "ddquery": Q, "ddkeys": [K], "ddvalues": [V], "ddterms": [], "dout": out, "dlse": lse, "query": Q, "keys": [K],
        "statistics": statistics, "wanted": [1] * 6, **changes,
    }  # fmt: skip
    none = (None, None, None)
    return OPS.attention_double_bwd(
        x["ddquery"], x["ddkeys"], x["ddvalues"], x["ddterms"], None, x["dout"], x["dlse"], None, x["query"], x["keys"],
        [V], [None], [], [], *none, x["statistics"], 1.0, 0.0, 0.0, [-1, -1], False, False, x["wanted"],
    )  # fmt: skip


DOUBLE_BACKWARD = {
    "ddquery has another shape than what it flows back to": {"ddquery": Q[:, :, :4]},
    "ddkeys has another shape": {"ddkeys": [K[..., :7]]},
    "ddvalues must have query's dtype": {"ddvalues": [V.double()]},
    "ddkeys, ddvalues and ddterms must have one entry per tensor": {"ddterms": [None]},
    "dout has another shape": {"dout": torch.zeros(2, 4, 5, 7)},
    "dlse has another shape": {"dlse": torch.zeros(3)},
    "dlse must have the accumulator's dtype": {"dlse": torch.zeros(2, 4, 5).double()},
    "statistics must come from forward": {"statistics": torch.zeros(2, 3)},
    "wanted must have 3 flags, for query": {"wanted": [1] * 5},
    "wanted must have 3 flags more": {"wanted": [1]},
    "no second derivatives without features": {"query": Q[..., :0], "keys": [K[..., :0]]},
}


@pytest.mark.parametrize("message", DOUBLE_BACKWARD)
def test_attention_double_backward_refuses(message):
    with pytest.raises(RuntimeError, match=message):
        double_backward(**DOUBLE_BACKWARD[message])


def ends(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


ENDS_Q, ENDS_K = ends(0, 5), ends(0, 7)


def packed(query=Q[0, 0, :, None], key=K[0, 0, :, None], value=V[0, 0, :, None], cu_q=ENDS_Q, cu_k=ENDS_K,
           max_q=5, max_k=7):  # fmt: skip
    arguments = (query, key, value, cu_q, cu_k, max_q, max_k, None, None)
    return OPS.attention_varlen_fwd(*arguments, 1.0, 0.0, 0.0, [-1, -1], False, False, False)


PACKED = {
    "query must have 3 dimensions": {"query": Q},
    "value has size 6 in dimension 0, expected 7": {"value": V[0, 0, :6, None]},
    "must have as many entries": {"cu_k": ends(0, 3, 7)},
    "cu_seqlens_q must be a row of int32": {"cu_q": torch.tensor([0, 5])},
    "max_seqlen must not be negative": {"max_q": -1},
}


@pytest.mark.parametrize("message", PACKED)
def test_packed_attention_refuses(message):
    with pytest.raises(RuntimeError, match=message):
        packed(**PACKED[message])


@pytest.mark.parametrize("cu", [ends(0, 900), ends(-5, 5), ends(3, 1), ends(5, 0), ends(2**31 - 1, -(2**31))], ids=str)
def test_packed_attention_clamps_offsets(cu):
    out, lse, _ = packed(cu_q=cu, cu_k=cu)
    assert out.shape == (5, 1, 6) and torch.isfinite(out).all() and not lse.isnan().any()


def test_associate_refuses_an_unknown_output():
    with pytest.raises(RuntimeError, match="output must be 0 to 4, got 7"):
        OPS.associate_fwd(Q, [K], [None], [], [], None, None, 1.0, 0.0, 7, 0, False)


def test_softmax_weighted_sum_refuses_other_shapes():
    with pytest.raises(RuntimeError, match="a mask or bias has size 6"):
        OPS.softmax_weighted_sum_fwd(torch.zeros(2, 4, 5, 6), V, None, None, 1.0, False)


CHECKED = """
import torch
import crossmodal
from tests.test_raw_operators import ends, forward, packed
calls = [
    lambda: forward(key_lengths=(torch.tensor([7, 8]),)),
    lambda: forward(rows=torch.tensor([6, 5])),
    lambda: packed(cu_q=ends(0, 6)),
    lambda: packed(cu_k=ends(0, 7), max_k=6),
]
for call in calls:
    try:
        call()
    except RuntimeError as error:
        print(str(error).splitlines()[0])
"""


def test_values_are_checked_when_the_environment_asks():
    import os
    import subprocess
    import sys

    found = subprocess.run(
        [sys.executable, "-c", CHECKED], env={**os.environ, "CROSSMODAL_CHECK": "1"}, capture_output=True, text=True
    )
    assert [line.partition("attention: ")[2] for line in found.stdout.splitlines()] == [
        "key_lengths must lie in [0, 7], got 8 at batch index 1",
        "query_lengths must lie in [0, 5], got 6 at batch index 0",
        "cu_seqlens_q must ascend within [0, 5] by at most 5, got 6 at index 1",
        "cu_seqlens_k must ascend within [0, 7] by at most 6, got 7 at index 1",
    ], found.stderr
