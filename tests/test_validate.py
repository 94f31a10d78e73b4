"""Bad input: the error names the argument, what came and what was wanted; operator and reference say the same."""

import pytest
import torch

import crossmodal
from crossmodal import Source, reference

Q, K, V = torch.zeros(2, 4, 5, 8), torch.zeros(2, 4, 7, 8), torch.zeros(2, 4, 7, 6)
GOOD = Source(K, V)
JAGGED = torch.nested.nested_tensor([torch.zeros(3, 8), torch.zeros(2, 8)], layout=torch.jagged)

# (call, error, message); the call gets the namespace, `crossmodal` or `crossmodal.reference`.
BAD_CALLS = {
    "query is no tensor": (lambda m: m.attention([[1.0]], K, V), TypeError, "query must be a torch.Tensor, got list"),
    "integers": (
        lambda m: m.attention(Q.int(), K, V),
        TypeError,
        "query must be float32, bfloat16, float16 or float64, got torch.int32",
    ),
    "one dimension": (
        lambda m: m.attention(Q[0, 0, 0], K, V),
        ValueError,
        "query must have 2 to 5 dimensions, got 1 (shape (8,))",
    ),
    "mixed dtypes": (
        lambda m: m.attention(Q, K.double(), V),
        TypeError,
        "key must have query's dtype torch.float32, got torch.float64",
    ),
    "head_dim": (
        lambda m: m.attention(Q, K[..., :5], V),
        ValueError,
        "key must have query's head_dim 8, got 5 (shape (2, 4, 7, 5))",
    ),
    "tokens": (
        lambda m: m.attention(Q, K, V[:, :, :6]),
        ValueError,
        "value must have as many tokens as key, 7, got 6",
    ),
    "leading dimensions": (
        lambda m: m.attention(Q, K[:, :3], V),
        ValueError,
        "key: leading dimensions (2, 3) do not broadcast with (2, 4) (query has shape (2, 4, 5, 8))",
    ),
    "device": (
        lambda m: m.attention(Q, K.to("meta"), V),
        ValueError,
        "key must be on query's device cpu, got meta",
    ),
    "mask shape": (
        lambda m: m.attention(Q, K, V, torch.ones(2, 7, dtype=torch.bool)),
        ValueError,
        "attn_mask of shape (2, 7) does not broadcast to (2, 4, 5, 7)",
    ),
    "mask dtype": (
        lambda m: m.attention(Q, K, V, torch.ones(5, 7, dtype=torch.int64)),
        TypeError,
        "attn_mask must be bool (True = attend) or floating point, got torch.int64",
    ),
    "length too large": (
        lambda m: m.attention(Q, K, V, key_lengths=torch.tensor([7, 9])),
        ValueError,
        "key_lengths must lie in [0, 7], got 9 at batch index 1",
    ),
    "length negative": (
        lambda m: m.attention(Q, K, V, key_lengths=torch.tensor([-1, 7])),
        ValueError,
        "key_lengths must lie in [0, 7], got -1 at batch index 0",
    ),
    "lengths dtype": (
        lambda m: m.attention(Q, K, V, key_lengths=torch.tensor([7.0, 7.0])),
        TypeError,
        "key_lengths must be int32 or int64, got torch.float32",
    ),
    "lengths shape": (
        lambda m: m.attention(Q, K, V, key_lengths=torch.tensor([7])),
        ValueError,
        "key_lengths must have shape (batch,) = (2,), got (1,)",
    ),
    "query lengths": (
        lambda m: m.attention(Q, K, V, query_lengths=torch.tensor([6, 1])),
        ValueError,
        "query_lengths must lie in [0, 5], got 6 at batch index 0",
    ),
    "dropout_p": (
        lambda m: m.attention(Q, K, V, dropout_p=1.5),
        ValueError,
        "dropout_p must lie in [0, 1], got 1.5",
    ),
    "scale is a tensor": (
        lambda m: m.attention(Q, K, V, scale=torch.tensor(1.0)),
        TypeError,
        "scale must be a float or None, got Tensor",
    ),
    "scale is not finite": (
        lambda m: m.attention(Q, K, V, scale=float("nan")),
        ValueError,
        "scale must be finite, got nan",
    ),
    "is_causal": (
        lambda m: m.attention(Q, K, V, is_causal="no"),
        TypeError,
        "is_causal must be a bool, got str",
    ),
    "scale beyond any float": (
        lambda m: m.attention(Q, K, V, scale=10**400),
        ValueError,
        "scale must fit a float, got an integer of 1329 bits",
    ),
    "a sparse query": (
        lambda m: m.attention(Q.to_sparse(), K, V),
        TypeError,
        "query must be a dense tensor, got one of layout torch.sparse_coo",
    ),
    "more keys than can be counted": (
        lambda m: m.attention(Q, K[:, :, :1].expand(2, 4, 2**31, 8), V[:, :, :1].expand(2, 4, 2**31, 6)),
        ValueError,
        "key must have at most 2147483647 tokens, got 2147483648",
    ),
    "topk beyond any key": (
        lambda m: m.associate(Q, K, topk=2**62),
        ValueError,
        "topk must lie in [1, 2147483647], got 4611686018427387904",
    ),
    "a nested tensor in a source": (
        lambda m: m.fuse(JAGGED, [Source(JAGGED, JAGGED)]),
        TypeError,
        "query must be a dense tensor, got one of layout torch.jagged",
    ),
    "causal_align": (
        lambda m: m.attention(Q, K, V, causal_align="left"),
        ValueError,
        "causal_align must be one of upper_left, lower_right, got 'left'",
    ),
    "window_size": (
        lambda m: m.attention(Q, K, V, window_size=(-2, 0)),
        ValueError,
        "window_size must be two ints >= -1 (left, right; -1 = open), got (-2, 0)",
    ),
    "softcap": (
        lambda m: m.attention(Q, K, V, softcap=-1.0),
        ValueError,
        "softcap must be finite and >= 0 (0 = off), got -1.0",
    ),
    "sink": (
        lambda m: m.attention(Q, K, V, sink=torch.zeros(3)),
        ValueError,
        "sink must have shape (num_heads,) = (4,), got (3,)",
    ),
    "heads that do not divide": (
        lambda m: m.attention(Q, K[:, :3], V[:, :3], enable_gqa=True),
        ValueError,
        "key: num_heads_k must divide query's num_heads 4, got 3",
    ),
    "dropout_seed": (
        lambda m: m.attention(Q, K, V, dropout_p=0.5, dropout_seed=torch.zeros(2, dtype=torch.int64)),
        ValueError,
        "dropout_seed must be a one-element int64 tensor, got torch.int64 of shape (2,)",
    ),
    "a source for sources": (
        lambda m: m.fuse(Q, GOOD),
        TypeError,
        "sources must be a list of crossmodal.Source or None, got Source",
    ),
    "a tensor for a source": (
        lambda m: m.fuse(Q, [GOOD, K]),
        TypeError,
        "sources[1] must be a crossmodal.Source or None, got Tensor",
    ),
    "widths of values": (
        lambda m: m.fuse(Q, [GOOD, Source(K, K)]),
        ValueError,
        "sources[1].value must have the head_dim_v of sources[0].value, 6, got 8",
    ),
    "lengths of a source": (
        lambda m: m.fuse(Q, [None, Source(K, V, lengths=torch.tensor([8, 0]))]),
        ValueError,
        "sources[1].lengths must lie in [0, 7], got 8 at batch index 0",
    ),
    "mask of a source": (
        lambda m: m.fuse(Q, [Source(K, V, mask=torch.zeros(2, 4, 5, 6))]),
        ValueError,
        "sources[0].mask of shape (2, 4, 5, 6) does not broadcast to (2, 4, 5, 7)",
    ),
    "bias of a source": (
        lambda m: m.fuse(Q, [Source(K, V, bias=torch.zeros(3, 1, 1, 1))]),
        ValueError,
        "sources[0].bias of shape (3, 1, 1, 1) does not broadcast to (2, 4, 5, 7)",
    ),
    "weighted_sum: columns": (
        lambda m: m.weighted_sum(torch.zeros(5, 6), torch.zeros(7, 8)),
        ValueError,
        "values must have seqlen_k = 6 rows as weights has columns, got 7 (weights (5, 6), values (7, 8))",
    ),
    "weighted_sum: dtypes": (
        lambda m: m.weighted_sum(torch.zeros(5, 7), torch.zeros(7, 8).double()),
        TypeError,
        "values must have weights' dtype torch.float32, got torch.float64",
    ),
    "weighted_sum: float mask": (
        lambda m: m.weighted_sum(torch.zeros(5, 7), torch.zeros(7, 8), mask=torch.zeros(5, 7)),
        TypeError,
        "mask must be bool (True = take part), got torch.float32",
    ),
    "weighted_sum: lengths": (
        lambda m: m.weighted_sum(torch.zeros(1, 5, 7), torch.zeros(7, 8), lengths=torch.tensor([8])),
        ValueError,
        "lengths must lie in [0, 7], got 8 at batch index 0",
    ),
    "associate: reduce": (
        lambda m: m.associate(Q, K, reduce="sum"),
        ValueError,
        "reduce must be one of None, 'heads', 'keys', 'entropy', 'mass', got 'sum'",
    ),
    "associate: topk": (
        lambda m: m.associate(Q, K, topk=0),
        ValueError,
        "topk must lie in [1, 2147483647], got 0",
    ),
    "associate: topk type": (
        lambda m: m.associate(Q, K, topk=1.0),
        TypeError,
        "topk must be an int or None, got float",
    ),
    "associate: both": (
        lambda m: m.associate(Q, K, topk=1, reduce="heads"),
        ValueError,
        "topk and reduce exclude each other, got topk=1 and reduce='heads'",
    ),
    "associate: lengths beside sources": (
        lambda m: m.associate(Q, [GOOD], key_lengths=torch.tensor([1, 2])),
        ValueError,
        "key_lengths and attn_mask go with a key tensor; a Source carries its own",
    ),
    "key is no tensor": (lambda m: m.attention(Q, None, V), TypeError, "key must be a torch.Tensor, got NoneType"),
    "value of integers": (
        lambda m: m.attention(Q, K, V.long()),
        TypeError,
        "value must be float32, bfloat16, float16 or float64, got torch.int64",
    ),
    "six dimensions": (
        lambda m: m.attention(Q, K, V[None, None]),
        ValueError,
        "value must have 2 to 5 dimensions, got 6 (shape (1, 1, 2, 4, 7, 6))",
    ),
    "mask is no tensor": (
        lambda m: m.attention(Q, K, V, [[True]]),
        TypeError,
        "attn_mask must be a torch.Tensor, got list",
    ),
    "mask device": (
        lambda m: m.attention(Q, K, V, torch.ones(5, 7, device="meta")),
        ValueError,
        "attn_mask must be on query's device cpu, got meta",
    ),
    "mask of more dimensions": (
        lambda m: m.attention(Q, K, V, torch.ones(1, 2, 4, 5, 7)),
        ValueError,
        "attn_mask of shape (1, 2, 4, 5, 7) does not broadcast to (2, 4, 5, 7)",
    ),
    "lengths are no tensor": (
        lambda m: m.attention(Q, K, V, key_lengths=[7, 7]),
        TypeError,
        "key_lengths must be a torch.Tensor, got list",
    ),
    "lengths of bool": (
        lambda m: m.attention(Q, K, V, key_lengths=torch.tensor([True, True])),
        TypeError,
        "key_lengths must be int32 or int64, got torch.bool",
    ),
    "lengths device": (
        lambda m: m.attention(Q, K, V, key_lengths=torch.ones(2, dtype=torch.int64, device="meta")),
        ValueError,
        "key_lengths must be on query's device cpu, got meta",
    ),
    "dropout_p is a text": (
        lambda m: m.attention(Q, K, V, dropout_p="half"),
        TypeError,
        "dropout_p must be a float, got str",
    ),
    "dropout_p is NaN": (
        lambda m: m.attention(Q, K, V, dropout_p=float("nan")),
        ValueError,
        "dropout_p must lie in [0, 1], got nan",
    ),
    "scale is a text": (
        lambda m: m.attention(Q, K, V, scale="auto"),
        TypeError,
        "scale must be a float or None, got str",
    ),
    "softcap is None": (
        lambda m: m.attention(Q, K, V, softcap=None),
        TypeError,
        "softcap must be a float, got NoneType",
    ),
    "softcap is infinite": (
        lambda m: m.attention(Q, K, V, softcap=float("inf")),
        ValueError,
        "softcap must be finite and >= 0 (0 = off), got inf",
    ),
    "window_size is one number": (
        lambda m: m.attention(Q, K, V, window_size=5),
        ValueError,
        "window_size must be two ints >= -1 (left, right; -1 = open), got 5",
    ),
    "window_size of floats": (
        lambda m: m.attention(Q, K, V, window_size=(1.0, 2.0)),
        ValueError,
        "window_size must be two ints >= -1 (left, right; -1 = open), got (1.0, 2.0)",
    ),
    "sink of integers": (
        lambda m: m.attention(Q, K, V, sink=torch.zeros(4, dtype=torch.int64)),
        TypeError,
        "sink must be float32, bfloat16, float16 or float64, got torch.int64",
    ),
    "sink is a number": (lambda m: m.attention(Q, K, V, sink=0.0), TypeError, "sink must be a torch.Tensor, got float"),
    "sink device": (
        lambda m: m.attention(Q, K, V, sink=torch.zeros(4, device="meta")),
        ValueError,
        "sink must be on query's device cpu, got meta",
    ),
    "seed is a number": (
        lambda m: m.attention(Q, K, V, dropout_p=0.5, dropout_seed=3),
        TypeError,
        "dropout_seed must be a torch.Tensor, got int",
    ),
    "seed device": (
        lambda m: m.attention(Q, K, V, dropout_p=0.5, dropout_seed=torch.zeros(1, dtype=torch.int64, device="meta")),
        ValueError,
        "dropout_seed must be on query's device cpu, got meta",
    ),
    "heads of values": (
        lambda m: m.attention(Q, K[:, :2], V, enable_gqa=True),
        ValueError,
        "value must have key's num_heads_k 2, got 4",
    ),
    "float64 under autocast": (
        lambda m: under_autocast(lambda: m.attention(Q.double(), K, V)),
        TypeError,
        "key must have query's dtype torch.float64, got torch.float32",
    ),
    "a generator for sources": (
        lambda m: m.fuse(Q, (s for s in [GOOD])),
        TypeError,
        "sources must be a list of crossmodal.Source or None, got generator",
    ),
    "a pair for a source": (
        lambda m: m.fuse(Q, [(K, V)]),
        TypeError,
        "sources[0] must be a crossmodal.Source or None, got tuple",
    ),
    "key of a source": (
        lambda m: m.fuse(Q, [None, Source(None, V)]),
        TypeError,
        "sources[1].key must be a torch.Tensor, got NoneType",
    ),
    "leading dimensions of a source": (
        lambda m: m.fuse(Q, [GOOD, Source(K[:, :, None].expand(2, 4, 3, 7, 8), V)]),
        ValueError,
        "sources[1].key: num_heads_k must divide query's num_heads 4, got 3",
    ),
    "weighted_sum: one dimension": (
        lambda m: m.weighted_sum(torch.zeros(7), torch.zeros(7, 8)),
        ValueError,
        "weights must have 2 to 5 dimensions, got 1 (shape (7,))",
    ),
    "weighted_sum: integers": (
        lambda m: m.weighted_sum(torch.zeros(5, 7).int(), torch.zeros(7, 8)),
        TypeError,
        "weights must be float32, bfloat16, float16 or float64, got torch.int32",
    ),
    "weighted_sum: device": (
        lambda m: m.weighted_sum(torch.zeros(5, 7), torch.zeros(7, 8, device="meta")),
        ValueError,
        "values must be on weights' device cpu, got meta",
    ),
    "weighted_sum: leading dimensions": (
        lambda m: m.weighted_sum(torch.zeros(2, 5, 7), torch.zeros(3, 7, 8)),
        ValueError,
        "leading dimensions of weights (2, 5, 7) and values (3, 7, 8) do not broadcast",
    ),
    "weighted_sum: mask shape": (
        lambda m: m.weighted_sum(torch.zeros(5, 7), torch.zeros(7, 8), mask=torch.ones(7, 5, dtype=torch.bool)),
        ValueError,
        "mask of shape (7, 5) does not broadcast to (5, 7)",
    ),
    "softmax_weighted_sum: scores": (
        lambda m: m.softmax_weighted_sum([[1.0]], torch.zeros(7, 8)),
        TypeError,
        "scores must be a torch.Tensor, got list",
    ),
    "softmax_weighted_sum: columns": (
        lambda m: m.softmax_weighted_sum(torch.zeros(5, 6), torch.zeros(7, 8)),
        ValueError,
        "values must have seqlen_k = 6 rows as scores has columns, got 7 (scores (5, 6), values (7, 8))",
    ),
    "softmax_weighted_sum: dtypes": (
        lambda m: m.softmax_weighted_sum(torch.zeros(5, 7), torch.zeros(7, 8).double()),
        TypeError,
        "values must have scores' dtype torch.float32, got torch.float64",
    ),
    "softmax_weighted_sum: leading dimensions": (
        lambda m: m.softmax_weighted_sum(torch.zeros(2, 5, 7), torch.zeros(3, 7, 8)),
        ValueError,
        "leading dimensions of scores (2, 5, 7) and values (3, 7, 8) do not broadcast",
    ),
    "softmax_weighted_sum: float mask": (
        lambda m: m.softmax_weighted_sum(torch.zeros(5, 7), torch.zeros(7, 8), mask=torch.zeros(5, 7)),
        TypeError,
        "mask must be bool (True = take part), got torch.float32",
    ),
    "softmax_weighted_sum: lengths": (
        lambda m: m.softmax_weighted_sum(torch.zeros(1, 5, 7), torch.zeros(7, 8), lengths=torch.tensor([8])),
        ValueError,
        "lengths must lie in [0, 7], got 8 at batch index 0",
    ),
    "softmax_weighted_sum: scale": (
        lambda m: m.softmax_weighted_sum(torch.zeros(5, 7), torch.zeros(7, 8), scale="auto"),
        TypeError,
        "scale must be a float or None, got str",
    ),
    "associate: keys": (
        lambda m: m.associate(Q, "keys"),
        TypeError,
        "key_or_sources must be a key tensor or a list of crossmodal.Source, got str",
    ),
    "associate: a tensor for a source": (
        lambda m: m.associate(Q, [K]),
        TypeError,
        "key_or_sources[0] must be a crossmodal.Source or None, got Tensor",
    ),
    "associate: head_dim": (
        lambda m: m.associate(Q, K[..., :5]),
        ValueError,
        "key must have query's head_dim 8, got 5 (shape (2, 4, 7, 5))",
    ),
}


PACKED_Q, PACKED_K, PACKED_V = torch.zeros(10, 4, 8), torch.zeros(14, 4, 8), torch.zeros(14, 4, 6)
ENDS_Q, ENDS_K = torch.tensor([0, 4, 10], dtype=torch.int32), torch.tensor([0, 7, 14], dtype=torch.int32)


def varlen(m, q=PACKED_Q, k=PACKED_K, v=PACKED_V, ends_q=ENDS_Q, ends_k=ENDS_K, max_q=6, max_k=7, **options):
    if isinstance(ends_q, list):
        ends_q = torch.tensor(ends_q, dtype=torch.int32)
    return m.attention_varlen(q, k, v, ends_q, ends_k, max_q, max_k, **options)


BAD_VARLEN_CALLS = {
    "query is no tensor": (lambda m: varlen(m, q=[[1.0]]), TypeError, "query must be a torch.Tensor, got list"),
    "padded query": (
        lambda m: varlen(m, q=Q),
        ValueError,
        "query must be packed, (total, num_heads, head_dim), got 4 dimensions (shape (2, 4, 5, 8))",
    ),
    "padded value": (
        lambda m: varlen(m, v=PACKED_V[None]),
        ValueError,
        "value must be packed, (total, num_heads, head_dim), got 4 dimensions (shape (1, 14, 4, 6))",
    ),
    "head_dim": (
        lambda m: varlen(m, k=PACKED_K[..., :5]),
        ValueError,
        "key must have query's head_dim 8, got 5 (shape (14, 4, 5))",
    ),
    "dtype": (
        lambda m: varlen(m, k=PACKED_K.double()),
        TypeError,
        "key must have query's dtype torch.float32, got torch.float64",
    ),
    "heads": (
        lambda m: varlen(m, k=PACKED_K[:, :2], v=PACKED_V[:, :2]),
        ValueError,
        "key must have query's num_heads 4, or enable_gqa=True, got 2",
    ),
    "heads that do not divide": (
        lambda m: varlen(m, k=PACKED_K[:, :3], v=PACKED_V[:, :3], enable_gqa=True),
        ValueError,
        "key: num_heads_k must divide query's num_heads 4, got 3",
    ),
    "heads of values": (
        lambda m: varlen(m, k=PACKED_K[:, :2], enable_gqa=True),
        ValueError,
        "value must have key's num_heads 2, got 4",
    ),
    "tokens": (
        lambda m: varlen(m, v=PACKED_V[:13]),
        ValueError,
        "value must have as many tokens as key, 14, got 13",
    ),
    "offsets are no tensor": (
        lambda m: m.attention_varlen(PACKED_Q, PACKED_K, PACKED_V, (0, 4, 10), ENDS_K, 6, 7),
        TypeError,
        "cu_seqlens_q must be a torch.Tensor, got tuple",
    ),
    "offsets of int64": (
        lambda m: varlen(m, ends_k=ENDS_K.long()),
        TypeError,
        "cu_seqlens_k must be int32, got torch.int64",
    ),
    "offsets of two dimensions": (
        lambda m: varlen(m, ends_q=ENDS_Q[None]),
        ValueError,
        "cu_seqlens_q must have shape (batch + 1,), got (1, 3)",
    ),
    "no offsets": (
        lambda m: varlen(m, ends_q=ENDS_Q[:0]),
        ValueError,
        "cu_seqlens_q must have shape (batch + 1,), got (0,)",
    ),
    "offsets of another batch": (
        lambda m: varlen(m, ends_k=ENDS_K[:2]),
        ValueError,
        "cu_seqlens_k must have cu_seqlens_q's shape (3,), got (2,)",
    ),
    "offsets device": (
        lambda m: varlen(m, ends_q=ENDS_Q.to("meta")),
        ValueError,
        "cu_seqlens_q must be on query's device cpu, got meta",
    ),
    "late start": (
        lambda m: varlen(m, ends_q=[1, 4, 10]),
        ValueError,
        "cu_seqlens_q must start at 0, got 1 at index 0",
    ),
    "descending": (
        lambda m: varlen(m, ends_q=[0, 4, 3]),
        ValueError,
        "cu_seqlens_q must not descend, got 3 after 4 at index 2",
    ),
    "beyond the rows": (
        lambda m: varlen(m, ends_q=[0, 5, 11]),
        ValueError,
        "cu_seqlens_q must lie in [0, total_q] = [0, 10], got 11 at index 2",
    ),
    "longer than max_seqlen": (
        lambda m: varlen(m, max_q=5),
        ValueError,
        "cu_seqlens_q: no sequence may be longer than max_seqlen_q = 5, got 6 at batch index 1",
    ),
    "keys longer than max_seqlen": (
        lambda m: varlen(m, max_k=6),
        ValueError,
        "cu_seqlens_k: no sequence may be longer than max_seqlen_k = 6, got 7 at batch index 0",
    ),
    "max_seqlen is a tensor": (
        lambda m: varlen(m, max_q=torch.tensor(6)),
        TypeError,
        "max_seqlen_q must be an int, got Tensor",
    ),
    "max_seqlen is negative": (lambda m: varlen(m, max_k=-1), ValueError, "max_seqlen_k must be at least 0, got -1"),
    "dropout_p": (lambda m: varlen(m, dropout_p=2.0), ValueError, "dropout_p must lie in [0, 1], got 2.0"),
    "scale": (lambda m: varlen(m, scale="auto"), TypeError, "scale must be a float or None, got str"),
    "causal_align": (
        lambda m: varlen(m, causal_align="left"),
        ValueError,
        "causal_align must be one of upper_left, lower_right, got 'left'",
    ),
    "window_size": (
        lambda m: varlen(m, window_size=3),
        ValueError,
        "window_size must be two ints >= -1 (left, right; -1 = open), got 3",
    ),
    "softcap": (lambda m: varlen(m, softcap=-1), ValueError, "softcap must be finite and >= 0 (0 = off), got -1"),
    "sink": (
        lambda m: varlen(m, sink=torch.zeros(3)),
        ValueError,
        "sink must have shape (num_heads,) = (4,), got (3,)",
    ),
    "seed": (
        lambda m: varlen(m, dropout_p=0.5, dropout_seed=3),
        TypeError,
        "dropout_seed must be a torch.Tensor, got int",
    ),
}
BAD_CALLS |= {f"attention_varlen: {name}": call for name, call in BAD_VARLEN_CALLS.items()}


def under_autocast(call):
    with torch.autocast("cpu", torch.bfloat16):
        return call()


@pytest.mark.parametrize("namespace", [crossmodal, reference], ids=["operator", "reference"])
@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_named(name, namespace):
    call, error, message = BAD_CALLS[name]
    with pytest.raises(error) as caught:
        call(namespace)
    assert str(caught.value) == message
