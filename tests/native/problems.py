"""Small problems that together take every path through the kernels."""

from dataclasses import replace

import torch

import crossmodal
from tests.accuracy import Problem, check_rounded
from tests.native.emulated import tf32_allowed
from tests.problems import Association, Fusion, Modality, Sink, Term, Varlen, WeightedSum

ALL = frozenset({"out", "lse", "mass"})
KEY_MASK = Term(torch.bool, (False, True, True, False), hides=0.4)
DENSE_BIAS = Term(torch.float32, (True, False, False, False))
ROW_BIAS = Term(torch.float32, (False, False, False, True))
KEY_BIAS = Term(torch.float32, (False, False, True, False), hides=0.2)

PLAIN = Fusion((Modality(150),), heads=2, seqlen_q=35, head_dim=64, head_dim_v=64, as_attention=True)
RAGGED = replace(
    PLAIN,
    modalities=(Modality(150, torch.int32),),
    batch=3,
    seqlen_q=21,
    query_lengths=torch.int64,
    poisoned=True,
)
GROUPED = replace(PLAIN, modalities=(Modality(70, heads_k=2),), heads=4, seqlen_q=17, head_dim=40, head_dim_v=56)
CAUSAL = replace(PLAIN, modalities=(Modality(100, torch.int32),), batch=2, is_causal=True, seqlen_q=90)
WINDOW = replace(CAUSAL, is_causal=False, window_size=(20, 3), causal_align="lower_right")
TRIO = Fusion(
    (Modality(33, torch.int64, mask=KEY_MASK), None, Modality(9, bias=DENSE_BIAS), Modality(90, torch.int32)),
    batch=2,
    heads=2,
    seqlen_q=19,
    head_dim=20,
    head_dim_v=44,
    asked=ALL,
    poisoned=True,
)
MASKED = replace(TRIO, heads=4, modalities=(Modality(130, mask=KEY_MASK, bias=KEY_BIAS, heads_k=2),))
OPTIONS = replace(TRIO, softcap=5.0, sink=Sink(torch.float32, offset=0.0, hides=0.0, strided=False))
# Sources that begin between the words of Philox blocks.
DROPOUT = replace(TRIO, dropout_p=0.4, dropout_seed=2**40 + 5)
DROPOUT_FULL = replace(DROPOUT, modalities=(Modality(33), Modality(90)))
PACKED = Varlen(
    (33, 0, 70, 5), (80, 7, 0, 150), beyond_q=3, beyond_k=2, heads=2, head_dim=64, head_dim_v=64, poisoned=True
)
WIDE = replace(PLAIN, seqlen_q=18, head_dim=184, head_dim_v=136)
EMPTY = replace(TRIO, modalities=(Modality(0), Modality(5, mask=Term(torch.bool, hides=1.0))))

# Gradients of biases in every form: by query, by key, by both, of samples and heads summed or not.
BIASES = replace(
    TRIO,
    modalities=(
        Modality(40, mask=KEY_BIAS, bias=ROW_BIAS),
        Modality(35, bias=Term(torch.float32, (True, False, False, False))),
        Modality(9, bias=Term(torch.float32, (False, False, False, False)), mask=Term(torch.float32, (True,) * 4)),
        Modality(20, bias=ROW_BIAS),
    ),
)
# Enough heads for one block each: backward in one kernel.
SHORT = replace(
    TRIO,
    batch=4,
    heads=4,
    seqlen_q=70,
    modalities=(Modality(33, torch.int64), Modality(9), Modality(70, torch.int32)),
)

SHORT_WIDE = replace(SHORT, modalities=(Modality(90),), head_dim=72, head_dim_v=100)
SHORT_PACKED = Varlen(
    (33, 0, 70, 5), (80, 7, 0, 150), beyond_q=3, beyond_k=2, heads=4, head_dim=64, head_dim_v=64, poisoned=True
)
SHORT_GROUPED = replace(SHORT, heads=8, modalities=(Modality(33, torch.int64, heads_k=4), Modality(70, heads_k=4)))
# One block does not find together what sources of different groups need.
SHORT_UNEQUAL = replace(SHORT_GROUPED, modalities=(Modality(33, heads_k=4), Modality(70, heads_k=2)))
SHORT_MASKED = replace(
    SHORT_GROUPED,
    modalities=(
        Modality(33, mask=KEY_BIAS, bias=ROW_BIAS, heads_k=4),
        Modality(70, torch.int32, mask=KEY_MASK, bias=DENSE_BIAS, heads_k=4),
    ),
    softcap=5.0,
    sink=OPTIONS.sink,
    dropout_p=0.4,
)
SHORT_CAUSAL = replace(CAUSAL, batch=8)

# Few blocks of queries: several blocks share out their keys.
OPERANDS = frozenset({"query", "key", "value"})
SHARED = replace(
    TRIO,
    batch=1,
    heads=1,
    seqlen_q=13,
    modalities=(Modality(260, torch.int64, mask=KEY_MASK), Modality(140, bias=DENSE_BIAS), Modality(90, torch.int32)),
)
SHARED_WIDE = replace(
    SHARED, modalities=(Modality(260),), head_dim=136, head_dim_v=184, dropout_p=0.3, asked=frozenset({"out", "lse"})
)
SHARED_PACKED = Varlen((9, 0, 17), (300, 7, 260), beyond_q=3, beyond_k=2, heads=1, head_dim=64, head_dim_v=64)

# Ragged batches of more tiles than the device holds at once.
QUEUED = replace(
    TRIO,
    batch=5,
    modalities=(Modality(40, torch.int64, mask=KEY_MASK), Modality(9), Modality(90, torch.int32)),
    query_lengths=torch.int32,
    dropout_p=0.2,
    seqlen_q=70,
)
# The rows beyond belong to the last sample, which has none of its own.
QUEUED_PACKED = Varlen(
    (33, 0, 70, 5, 0), (80, 7, 0, 150, 0), beyond_q=3, beyond_k=2, heads=3, head_dim=64, head_dim_v=64, poisoned=True
)

# One query, and few, to a head of keys; biases without a gradient, which would take the other kernels.
ONE = replace(TRIO, seqlen_q=1, head_dim=64, head_dim_v=64, differentiated=OPERANDS)
ONE_LONG = replace(ONE, batch=1, modalities=(Modality(700),), heads=2, head_dim=72, head_dim_v=40)
ONE_OF_MANY = replace(ONE, batch=8, heads=4, modalities=(Modality(197),), poisoned=False)
# So many that each has a warp to itself, and nothing but products and lengths.
ONE_ALONE = replace(
    ONE,
    batch=17,
    heads=4,
    modalities=(Modality(33, torch.int64), None, Modality(9), Modality(0), Modality(50, torch.int32)),
    query_lengths=torch.int32,
)
ONE_ALONE_EMPTY = replace(ONE_ALONE, modalities=(Modality(5, torch.int64), Modality(0)))
# Rows that begin between multiples of 16 bytes take the others' way.
ONE_ALONE_STRIDED = replace(
    ONE_ALONE, modalities=(Modality(20, key_layout="heads_inside"), Modality(9, value_layout="heads_inside"))
)
ONE_ALONE_UNALIGNED = replace(ONE_ALONE, modalities=(Modality(20, key_layout="sliced"),))
ONE_ALONE_WIDE = replace(ONE_ALONE, head_dim=128, head_dim_v=128)
ONE_ALONE_WIDEST = replace(ONE_ALONE, modalities=(Modality(41),), head_dim=256, head_dim_v=256, poisoned=False)
FEW = replace(TRIO, seqlen_q=3, differentiated=OPERANDS, query_lengths=torch.int32)
FEW_WIDE = replace(ONE_LONG, seqlen_q=2, head_dim=192, head_dim_v=130)
FEW_NARROW = replace(ONE_LONG, seqlen_q=2, head_dim=3, head_dim_v=5)
FEW_GROUPED = replace(MASKED, seqlen_q=2, differentiated=OPERANDS)
FEW_UNEQUAL = replace(FEW_GROUPED, modalities=(Modality(33, heads_k=4), Modality(70, heads_k=2)))
FEW_IN_TILES = replace(FEW_GROUPED, seqlen_q=4)
FEW_CAUSAL = replace(CAUSAL, seqlen_q=4)
FEW_WINDOW = replace(WINDOW, seqlen_q=4)
FEW_OPTIONS = replace(OPTIONS, seqlen_q=2, differentiated=OPERANDS)
FEW_DROPOUT = replace(DROPOUT, seqlen_q=2, differentiated=OPERANDS)
FEW_PACKED = Varlen((1, 0, 4, 2), (80, 7, 0, 150), beyond_q=3, beyond_k=2, heads=2, head_dim=64, head_dim_v=64)
FEW_EMPTY = replace(EMPTY, seqlen_q=1, differentiated=OPERANDS)


PROBLEMS = {name: problem for name, problem in globals().items() if isinstance(problem, Fusion | Varlen)}

# What attended to what: more than one block of queries, keys that masks hide from all or from some.
LINKED = replace(TRIO, seqlen_q=70, query_lengths=torch.int32, asked=frozenset({"out"}))
LINKED_WITH_OPTIONS = replace(
    LINKED, softcap=5.0, sink=OPTIONS.sink, heads=4, modalities=MASKED.modalities, query_lengths=None
)
_REDUCTIONS = {"WEIGHTS": None, "HEADS": "heads", "KEYS": "keys", "ENTROPY": "entropy", "MASS": "mass"}
SUMMARIES = {
    **{name: Association(LINKED, reduce) for name, reduce in _REDUCTIONS.items()},
    **{f"{name}_WITH_OPTIONS": Association(LINKED_WITH_OPTIONS, reduce) for name, reduce in _REDUCTIONS.items()},
    "LINKS": Association(LINKED, topk=5),
    "LINKS_WITH_OPTIONS": Association(LINKED_WITH_OPTIONS, topk=3),
    "MORE_LINKS_THAN_KEYS": Association(replace(EMPTY, seqlen_q=18), topk=7),
}

WEIGHTED = WeightedSum(
    batch=2,
    heads=2,
    seqlen_q=35,
    seqlen_k=70,
    head_dim=40,
    lengths=torch.int64,
    mask=Term(torch.bool, hides=0.3),
    poisoned=True,
)
WEIGHTED_SUMS = {
    "WEIGHTED": WEIGHTED,
    "WEIGHTED_BY_KEY": replace(WEIGHTED, mask=KEY_MASK, lengths=torch.int32),
    "WEIGHTED_WIDE": replace(WEIGHTED, seqlen_q=3, seqlen_k=9, head_dim=150, lengths=None, mask=None, poisoned=False),
    # Several blocks of keys, of which some are other blocks' products; more than a warp of queries.
    "WEIGHTED_LONG": replace(WEIGHTED, seqlen_q=20, seqlen_k=197, head_dim=64, mask=None),
    "WEIGHTED_HIGH": replace(WEIGHTED, batch=8, seqlen_q=197, seqlen_k=77, head_dim=64, mask=None),
    "WEIGHTED_APART": replace(WEIGHTED, weights_layout="strided_last"),
    "WEIGHTED_IN_PLACE": replace(WEIGHTED, weights_layout="transposed_last", values_layout="heads_inside"),
    "SCORED": replace(WEIGHTED, softmax=True, scale=0.5),
    "SCORED_WIDE": replace(WEIGHTED, softmax=True, seqlen_q=3, head_dim=150, mask=KEY_MASK),
}

TF32_EPS = 2.0**-10  # the distance of 1 from the next number of ten bits

EVERY_PROBLEM = {**PROBLEMS, **SUMMARIES, **WEIGHTED_SUMS}


def in_dtype(problem: Problem, dtype: torch.dtype) -> Problem:
    if isinstance(problem, Association):
        return replace(problem, fusion=in_dtype(problem.fusion, dtype))
    return replace(problem, dtype=dtype)


def problems_of(*beginnings: str) -> list[str]:
    return [name for name in PROBLEMS if name.startswith(beginnings)]


def rounds_to_tf32(problem: Fusion | Varlen) -> None:
    """With factors of ten bits results are as accurate as those allow."""
    with tf32_allowed():
        check_rounded(in_dtype(problem, torch.float32), TF32_EPS)


def forward_only(problem: Fusion | Varlen) -> Fusion | Varlen:
    return replace(problem, differentiated=frozenset(), asked=frozenset())


def equal_links_keep_their_order(dtype: torch.dtype) -> None:
    """Links of equal weight come in the order of the keys, the first of them where not all are asked for."""
    query, keys = torch.zeros(1, 2, 18, 40, dtype=dtype), torch.randn(1, 2, 90, 40).to(dtype)
    weights, indices = crossmodal.associate(query, keys, topk=50)
    assert torch.equal(indices, torch.arange(50).expand_as(indices))
    assert torch.equal(weights, weights[..., :1].expand_as(weights))


def masked_keys_may_be_nan(dtype: torch.dtype, seqlen_q: int) -> None:
    """Keys and values that a mask hides from every query, and keys that it hides from some, change nothing."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, n, 40).to(dtype) for n in (seqlen_q, 90, 90))
    hidden = torch.rand(2, 1, 1, 90) < 0.4
    hidden[..., 7] = False
    partly = torch.zeros(seqlen_q, 90, dtype=torch.bool)
    partly[3:, 7] = True
    mask = ~(hidden | partly)
    results = []
    for poison in (0.0, float("nan")):
        key, value = k.clone(), v.clone()
        key.masked_fill_(hidden.mT, poison), value.masked_fill_(hidden.mT, poison)
        inputs = [t.requires_grad_() for t in (q.clone(), key, value)]
        out = crossmodal.attention(*inputs, ~hidden)
        results.append([out, *torch.autograd.grad(out.float().square().sum(), inputs)])
    for clean, poisoned in zip(*results, strict=True):
        assert torch.equal(clean, poisoned)
    key = k.clone()
    key[:, :, 7] = float("inf")  # seen by the first queries, whose results are anything
    inputs = [t.requires_grad_() for t in (q.clone(), key, v.clone())]
    out = crossmodal.attention(*inputs, mask)
    (dq,) = torch.autograd.grad(out[:, :, 3:].float().square().sum(), inputs[:1])
    assert out[:, :, 3:].isfinite().all() and dq[:, :, 3:].isfinite().all()


def infinite_value_of_the_last_key_arrives(dtype: torch.dtype) -> None:
    """Blocks of keys end beyond it: what stands there in its place has no weight, and is not Inf times 0."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(17, 4, n, 64).to(dtype) for n in (1, 41, 41))
    finite = crossmodal.attention(q, k, v)
    v[..., -1, 5] = float("inf")
    out = crossmodal.attention(q, k, v)
    assert out[..., 5].isposinf().all()
    out[..., 5] = finite[..., 5]
    assert out.equal(finite)
