"""The raw operators are registered as torch wants them: schemas, fakes, what they mutate and alias."""

import pytest
import torch

OPS = torch.ops.crossmodal
Q, K, V = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 6)
MASK, KEEP = torch.randn(1, 4, 5, 7), torch.rand(2, 1, 1, 7) < 0.5
QUERY_LENGTHS, KEY_LENGTHS = torch.tensor([5, 2]), torch.tensor([3, 7])
SINK, SEED = torch.randn(1, 4), torch.tensor([7])


def check(name, arguments):
    """Besides torch's own checks: every result is written whole, whatever its memory held before."""
    op, found = getattr(OPS, name).default, []
    torch.library.opcheck(op, arguments)
    for held_before in (1e30, -1e30):
        freed = [torch.full((size,), held_before, dtype=torch.float32) for size in range(1, 800, 8) for _ in range(4)]
        del freed
        found.append(op(*arguments))
    torch.testing.assert_close(*found, rtol=0, atol=0, equal_nan=True)


# Tensors, then scale, softcap, dropout_p, window, lower_right, allow_tf32.
TWO_SOURCES = ([K, K], [V, V], [KEY_LENGTHS, None], [MASK, KEEP], [0, 1])
WITH_EVERYTHING = (QUERY_LENGTHS, SINK, SEED), (0.3, 2.0, 0.5, [-1, -1], False, True)
WITHOUT = (None, None, None), (0.3, 0.0, 0.0, [-1, -1], False, False)


@pytest.mark.parametrize("options", [WITH_EVERYTHING, WITHOUT], ids=["everything", "nothing"])
@pytest.mark.parametrize("return_mass", [False, True])
@pytest.mark.parametrize("for_backward", [False, True])
def test_attention_fwd(options, return_mass, for_backward):
    tensors, numbers = options
    check("attention_fwd", (Q, *TWO_SOURCES, *tensors, *numbers, return_mass, for_backward))


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_plain(is_causal):
    heads_inside = Q.transpose(1, 2).contiguous().transpose(1, 2)
    for query in (Q, heads_inside):
        check("attention_plain", (query, K.repeat(1, 2, 1, 1), V.repeat(1, 2, 1, 1), 0.3, is_causal, False))


@pytest.mark.parametrize("wants", [(True, True, True), (False, True, False)], ids=str)
def test_attention_plain_with_gradients(wants):
    heads_inside = Q.transpose(1, 2).contiguous().transpose(1, 2)
    for query in (Q, heads_inside):
        tensors = query, K.repeat(1, 2, 1, 1), V.repeat(1, 2, 1, 1)
        check("attention_plain_fwd", (*tensors, 0.3, True, True))
        out, statistics = OPS.attention_plain_fwd(*tensors, 0.3, True, True)
        check("attention_plain_bwd", (out, *tensors, out, statistics, 0.3, True, True, *wants))


def test_attention_fwd_with_a_window():
    window = (0.3, 0.0, 0.0, [2, 1], True, False)
    check("attention_fwd", (Q, [K], [V], [KEY_LENGTHS], [], [], QUERY_LENGTHS, None, None, *window, False, True))


@pytest.mark.parametrize("layout", ["plain", "heads_inside"])
@pytest.mark.parametrize("options", [WITH_EVERYTHING, WITHOUT], ids=["everything", "nothing"])
@pytest.mark.parametrize("wanted", ["all", "some"])
def test_attention_bwd(layout, options, wanted):
    query = Q if layout == "plain" else Q.transpose(1, 2).contiguous().transpose(1, 2)
    tensors, numbers = options
    sources = (*TWO_SOURCES[:3], [MASK, KEEP.float()], [0, 1])
    out, lse, mass, statistics = OPS.attention_fwd(query, *sources, *tensors, *numbers, True, True)
    flags = [1] * 7 if wanted == "all" else [0, 1, 0, 0, 1, 0, 0]
    if tensors[1] is not None:
        flags.append(1)
    check(
        "attention_bwd",
        (out, lse, mass, query, *sources, *tensors, out, statistics, mass, *numbers, flags),
    )


@pytest.mark.parametrize("layout", ["plain", "heads_inside"])
@pytest.mark.parametrize("options", [WITH_EVERYTHING, WITHOUT], ids=["everything", "nothing"])
@pytest.mark.parametrize("wanted", ["all", "some"])
def test_attention_double_bwd(layout, options, wanted):
    query = Q if layout == "plain" else Q.transpose(1, 2).contiguous().transpose(1, 2)
    tensors, numbers = options
    sources = (*TWO_SOURCES[:3], [MASK, KEEP.float()], [0, 1])
    out, lse, mass, statistics = OPS.attention_fwd(query, *sources, *tensors, *numbers, True, True)
    flags = [1] * 10 if wanted == "all" else [0, 1, 0, 0, 0, 1, 0, 0, 1, 0]
    sink = tensors[1]
    if sink is not None:
        flags.append(1)
    flowing = (query, [K, None], [V, V], [None, KEEP.float()], sink)
    check("attention_double_bwd", (*flowing, out, lse, mass, query, *sources, *tensors, statistics, *numbers, flags))


def packed(sink=None, seed=None):
    cu_q, cu_k = torch.tensor([0, 3, 3, 9], dtype=torch.int32), torch.tensor([0, 4, 9, 11], dtype=torch.int32)
    query, key, value = torch.randn(10, 4, 8), torch.randn(12, 2, 8), torch.randn(12, 2, 6)
    return (query, key, value, cu_q, cu_k, 6, 5, sink, seed)


@pytest.mark.parametrize("for_backward", [False, True])
def test_attention_varlen_fwd(for_backward):
    check("attention_varlen_fwd", (*packed(SINK, SEED), 0.3, 2.0, 0.5, [3, 0], True, True, for_backward))


@pytest.mark.parametrize("wanted", [[1, 1, 1, 1], [0, 1, 0, 0]], ids=["all", "some"])
def test_attention_varlen_bwd(wanted):
    inputs, options = packed(SINK, SEED), (0.3, 2.0, 0.5, [3, 0], True, True)
    out, lse, statistics = OPS.attention_varlen_fwd(*inputs, *options, True)
    lse = lse.nan_to_num(neginf=0.0)
    check("attention_varlen_bwd", (out, lse, *inputs, out, statistics, *options, wanted))


@pytest.mark.parametrize("wanted", [[1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 0, 0]], ids=["all", "some"])
def test_attention_varlen_double_bwd(wanted):
    inputs, options = packed(SINK, SEED), (0.3, 2.0, 0.5, [3, 0], True, True)
    out, lse, statistics = OPS.attention_varlen_fwd(*inputs, *options, True)
    lse = lse.nan_to_num(neginf=0.0)
    flowing = (inputs[0], None, inputs[2], SINK)
    check("attention_varlen_double_bwd", (*flowing, out, lse, *inputs, statistics, *options, wanted))


OUTPUTS = {"weights": 0, "heads": 1, "topk": 2, "keys": 3, "entropy": 4}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("for_backward", [False, True])
def test_associate_fwd(output, for_backward):
    sources = ([K, K], [KEY_LENGTHS, None], [MASK], [0])
    check(
        "associate_fwd",
        (Q, *sources, QUERY_LENGTHS, SINK, 0.3, 2.0, OUTPUTS[output], 3, for_backward),
    )


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("wanted", [[1, 1, 1, 1, 1], [1, 0, 0, 1, 0]], ids=["all", "some"])
def test_associate_bwd(output, wanted):
    sources = ([K, K], [KEY_LENGTHS, None], [MASK], [0], QUERY_LENGTHS, SINK)
    weights, indices, statistics = OPS.associate_fwd(Q, *sources, 0.3, 2.0, OUTPUTS[output], 3, True)
    check("associate_bwd", (weights, Q, *sources, indices, statistics, 0.3, 2.0, OUTPUTS[output], wanted))


W, X = torch.rand(2, 3, 5, 7), torch.randn(2, 3, 7, 6)
FULL_MASK = torch.rand(2, 3, 5, 7) < 0.5


@pytest.mark.parametrize("mask", [None, FULL_MASK], ids=["no mask", "mask"])
def test_weighted_sum(mask):
    check("weighted_sum_fwd", (W, X, KEY_LENGTHS, mask))
    dout = torch.randn(2, 3, 5, 6)
    for wanted in ((True, True), (False, True)):
        check("weighted_sum_bwd", (dout, W, X, KEY_LENGTHS, mask, *wanted))


@pytest.mark.parametrize("mask", [None, FULL_MASK], ids=["no mask", "mask"])
def test_softmax_weighted_sum(mask):
    inputs = (W, X, KEY_LENGTHS, mask)
    for for_backward in (False, True):
        check("softmax_weighted_sum_fwd", (*inputs, 0.3, for_backward))
    out, statistics = OPS.softmax_weighted_sum_fwd(*inputs, 0.3, True)
    for wanted in ((True, True), (False, True)):
        check("softmax_weighted_sum_bwd", (out, *inputs, out, statistics, 0.3, *wanted))
