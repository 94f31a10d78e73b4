"""`explain` tells what a call would run, in the words of the call itself, and runs nothing."""

import logging

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import crossmodal
from crossmodal import Plan, Source, _library, dispatch, explain
from crossmodal.ops import _cuda_plans

Q, K, V = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 6)
ENDS = torch.tensor([0, 2, 5], dtype=torch.int32)
PACKED = torch.randn(5, 4, 8)

CALLS = {  # function and arguments
    "attention": (crossmodal.attention, (Q, K, V)),
    "fuse": (crossmodal.fuse, (Q, [Source(K, V), None, Source(K, V)])),
    "attention_varlen": (crossmodal.attention_varlen, (PACKED, PACKED, PACKED, ENDS, ENDS, 3, 3)),
    "weighted_sum": (crossmodal.weighted_sum, (torch.rand(2, 4, 5, 7), V)),
    "softmax_weighted_sum": (crossmodal.softmax_weighted_sum, (torch.rand(2, 4, 5, 7), V)),
    "associate": (crossmodal.associate, (Q, K)),
}


def jagged(*lengths):
    samples = [torch.randn(n, 4, 8) for n in lengths]
    return torch.nested.nested_tensor(samples, layout=torch.jagged).transpose(1, 2)


def refusal_of_strict_mode(function, *arguments, **options):
    """The reasons that strict mode gives, or None where a kernel runs."""
    try:
        with crossmodal.strict():
            function(*arguments, **options)
    except RuntimeError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", CALLS)
def test_every_function_is_explained(name):
    function, arguments = CALLS[name]
    plan = explain(function, *arguments)
    assert isinstance(plan, Plan) and plan.op == name
    assert str(plan).startswith(f"crossmodal.{name}: {plan.kernel}\n")


@pytest.mark.parametrize("name", CALLS)
def test_plan_and_strict_mode_agree(name):
    function, arguments = CALLS[name]
    refusal = refusal_of_strict_mode(function, *arguments)
    plan = explain(function, *arguments)
    assert (plan.kernel == "reference") == (refusal is not None)
    if refusal is not None:
        assert any(reason in refusal for _, reason in plan.refused)


def test_kernel_is_that_of_the_active_instruction_set(isa):
    plan = explain(crossmodal.attention, Q, K, V)
    assert plan.kernel == isa and plan.details["instruction set"] == isa


def test_better_instruction_sets_are_refused_with_a_reason(isa):
    better = [entry["name"] for entry in _library.cpu_isas()]
    better = better[: better.index(isa)]
    assert [kernel for kernel, _ in explain(crossmodal.attention, Q, K, V).refused] == better


def test_details_are_those_of_the_library(isa):
    plan = explain(crossmodal.attention, Q, K, V, is_causal=True)
    facts = _library.attention_plan("float32", 2, 4, 5, 7, 8, head_dim_v=6, is_causal=True)
    for name in ("multiply", "lanes", "tile", "block_m", "block_n"):
        assert plan.details[name] == facts[name]
    assert plan.details["gflop"] == pytest.approx(facts["gflop"])


def test_device_without_kernels_is_the_reason_for_the_reference():
    plan = explain(crossmodal.attention, Q.to("meta"), K.to("meta"), V.to("meta"))
    assert plan.kernel == "reference"
    assert [kernel for kernel, _ in plan.refused] == ["meta"] and "device type 'meta'" in plan.refused[0][1]


H100 = _cuda_plans.Device(90, 100, 227 << 10, 50 << 20)
SMALL = _cuda_plans.Device(80, 10, 163 << 10, 5 << 20)
TURING = _cuda_plans.Device(75, 40, 64 << 10, 4 << 20)


@pytest.fixture
def on_cuda(monkeypatch):
    """Makes a tensor that says it is on a GPU, of a library that has kernels for it."""
    monkeypatch.setattr(dispatch, "HAS_CUDA_KERNELS", True)
    with FakeTensorMode():
        yield lambda *shape, dtype=torch.bfloat16: torch.empty(shape, dtype=dtype, device="cuda")


@pytest.mark.parametrize(
    ("dtype", "kernel"), [(torch.bfloat16, "sm80_mma"), (torch.float16, "sm80_mma"), (torch.float32, "sm80_fma")]
)
def test_cuda_tensors_take_cuda_kernels(on_cuda, dtype, kernel):
    q = on_cuda(2, 4, 5, 64, dtype=dtype)
    assert explain(crossmodal.attention, q, q, q).kernel == kernel


def test_tf32_takes_matrix_instructions_where_torch_allows_it(on_cuda):
    q = on_cuda(2, 4, 50, 64, dtype=torch.float32)
    reason = "torch.backends.cuda.matmul.fp32_precision is not 'tf32'"
    assert reason in str(explain(crossmodal.attention, q, q, q))
    torch.set_float32_matmul_precision("high")
    try:
        plan = explain(crossmodal.attention, q, q, q)
        weights = explain(crossmodal.associate, q, q)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert (plan.kernel, plan.details["backward"]) == ("sm80_mma_tf32", "sm80_mma_tf32")
    assert "mma.sync m16n8k8" in plan.details["multiply"] and reason not in str(plan)
    assert weights.kernel == "sm80_fma"


def test_cuda_kernels_are_chosen_by_the_problem_and_the_gpu(on_cuda, monkeypatch):
    def kernels(seqlen_q, seqlen_k, batch=64, heads_k=8, head_dim=64, **options):
        q, k = on_cuda(batch, 8, seqlen_q, head_dim), on_cuda(batch, heads_k, seqlen_k, head_dim)
        plan = explain(crossmodal.attention, q, k, k, enable_gqa=True, **options)
        return plan.kernel, plan.details["backward"], plan.details["shares of keys"]

    monkeypatch.setattr(_cuda_plans, "device_of", lambda operand: H100)
    assert kernels(197, 77) == ("sm80_mma", "sm80_mma_short", 1)
    assert kernels(197, 77, softcap=20.0) == ("sm80_mma", "sm80_mma_short", 1)
    assert kernels(97, 77, heads_k=4, batch=128) == ("sm80_mma", "sm80_mma_short", 1)
    assert kernels(97, 77, head_dim=128) == ("sm80_mma", "sm80_mma_short", 1)
    assert kernels(97, 77, head_dim=128, softcap=20.0) == ("sm80_mma", "sm80_mma", 1)  # registers
    assert kernels(197, 600) == ("sm80_mma", "sm80_mma", 1)  # second-level cache
    assert kernels(1, 197) == ("sm80_few_queries", "sm80_few_queries", 1)
    assert kernels(2, 197, heads_k=2) == ("sm80_few_queries", "sm80_mma", 1)  # 8 queries to a head of keys
    sink = on_cuda(8, dtype=torch.float32).requires_grad_()
    assert kernels(1, 197, sink=sink) == ("sm80_few_queries", "sm80_mma_short", 1)
    # 8 blocks of 64 queries leave most of 100 multiprocessors idle; two blocks of 64 keys are a share.
    assert kernels(64, 4096, batch=1) == ("sm80_mma", "sm80_mma, 25 shares of keys", 25)
    assert kernels(64, 256, batch=1) == ("sm80_mma", "sm80_mma, 2 shares of keys", 2)
    assert kernels(64, 4096, batch=1, softcap=20.0) == ("sm80_mma", "sm80_mma", 25)  # plain scores alone
    assert kernels(1, 65536, batch=1) == ("sm80_few_queries", "sm80_few_queries, 32 shares of keys", 32)
    # A thousand heads of all samples or more: eight for each multiprocessor.
    for batch, head_dim, warps in ((512, 64, 1), (512, 72, 4), (64, 64, 4)):
        q, k = on_cuda(batch, 8, 1, head_dim), on_cuda(batch, 8, 197, head_dim)
        assert explain(crossmodal.attention, q, k, k).details["warps to a row"] == warps
    lengths = on_cuda(64, dtype=torch.int64)
    q = on_cuda(64, 8, 197, 64)
    assert explain(crossmodal.attention, q, q, q, key_lengths=lengths).details["tiles"] == "queue, most work first"
    assert explain(crossmodal.attention, q, q, q).details["tiles"] == "in turn"
    monkeypatch.setattr(_cuda_plans, "device_of", lambda operand: SMALL)
    assert kernels(64, 4096, batch=1) == ("sm80_mma", "sm80_mma, 2 shares of keys", 2)


def test_every_better_cuda_kernel_says_why_it_does_not_run(on_cuda, monkeypatch):
    monkeypatch.setattr(_cuda_plans, "device_of", lambda operand: H100)
    q = on_cuda(2, 4, 5, 64)
    sources = [Source(key, key) for key in (on_cuda(2, 2, 7, 64), on_cuda(2, 4, 7, 64))]
    plan = explain(crossmodal.fuse, q, sources)
    assert [kernel for kernel, _ in plan.refused] == [
        "sm80_few_queries",
        "sm80_few_queries in backward",
        "sm80_mma_short in backward",
    ]
    assert "a number of queries of 5 is more than 4" in str(plan) and "sources differ in heads of keys" in str(plan)


def test_weighted_sums_have_a_cuda_kernel_of_their_own(on_cuda, monkeypatch):
    monkeypatch.setattr(_cuda_plans, "device_of", lambda operand: H100)
    weights, values = on_cuda(2, 4, 5, 7), on_cuda(2, 4, 7, 64)
    assert explain(crossmodal.weighted_sum, weights, values).kernel == "sm80_weighted_sum"
    assert explain(crossmodal.softmax_weighted_sum, weights, values).kernel == "sm80_mma"


def test_cuda_kernels_say_what_they_refuse(on_cuda):
    wide, narrow = on_cuda(2, 4, 5, 264), on_cuda(2, 4, 5, 8)
    refusals = {
        "head_dim of 256 at most, got 264": explain(crossmodal.attention, wide, wide, narrow),
        "head_dim of values of 256 at most, got 264": explain(crossmodal.attention, narrow, narrow, wide),
        "8 sources at most, got 9": explain(crossmodal.fuse, narrow, [Source(narrow, narrow)] * 9),
    }
    for reason, plan in refusals.items():
        assert plan.kernel == "reference" and [reason in why for _, why in plan.refused] == [True]


def test_a_gpu_before_the_oldest_with_kernels_runs_plain_torch(on_cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: (7, 5))
    monkeypatch.setattr(_cuda_plans, "device_of", lambda operand: TURING)
    dispatch.is_too_old.cache_clear()
    q = on_cuda(2, 4, 5, 64)
    try:
        plan = explain(crossmodal.attention, q, q, q)
    finally:
        dispatch.is_too_old.cache_clear()
    assert plan.kernel == "reference" and [why for _, why in plan.refused] == ["CUDA kernels need a GPU from sm_80 on"]


def test_a_build_without_cuda_kernels_says_so(on_cuda, monkeypatch):
    monkeypatch.setattr(dispatch, "HAS_CUDA_KERNELS", False)
    q = on_cuda(2, 4, 5, 64)
    assert explain(crossmodal.attention, q, q, q).refused == [("sm80_mma", "this build has no CUDA kernels")]


def test_keys_of_all_sources_count():
    plan = explain(crossmodal.fuse, Q, [Source(K, V), None, Source(K, V)])
    assert plan.details["problem"] == "batch 2, heads 4, queries 5, keys 14, head_dim 8"
    assert plan.details["gflop"] == pytest.approx(2 * 2 * 4 * 5 * 14 * (8 + 6) / 1e9)


def test_operations_of_packed_sequences_are_those_of_each():
    plan = explain(crossmodal.attention_varlen, PACKED, PACKED, PACKED, ENDS, ENDS, 100, 100)
    assert plan.details["gflop"] == pytest.approx(2 * 4 * (2 * 2 + 3 * 3) * 16 / 1e9)


def test_nested_tensors_are_explained_as_packed_sequences():
    q, k = jagged(2, 3), jagged(4, 1)
    plan = explain(crossmodal.attention, q, k, k, is_causal=True)
    assert plan.op == "attention_varlen"
    assert plan.details["gflop"] == pytest.approx(2 * 4 * (2 * 4 + 3 * 1) / 2 * 16 / 1e9)


def test_without_any_source_there_is_nothing_to_run():
    assert explain(crossmodal.fuse, Q, [None]).kernel == "none"
    assert explain(crossmodal.associate, Q, [], reduce="mass").kernel == "none"


@pytest.mark.parametrize("options", [{"topk": 2}, {"reduce": "mass"}, {"reduce": "entropy"}], ids=str)
def test_associate_is_explained_for_what_it_returns(options):
    plan = explain(crossmodal.associate, Q, K, **options)
    assert (plan.kernel == "reference") == (refusal_of_strict_mode(crossmodal.associate, Q, K, **options) is not None)


BAD_CALLS = {
    "attention": lambda call: call(crossmodal.attention, Q, K, V[:, :, :6]),
    "fuse": lambda call: call(crossmodal.fuse, Q, Source(K, V)),
    "attention_varlen": lambda call: call(crossmodal.attention_varlen, PACKED, PACKED, PACKED, ENDS, ENDS, 2, 3),
    "weighted_sum": lambda call: call(crossmodal.weighted_sum, torch.rand(5, 6), torch.rand(7, 8)),
    "softmax_weighted_sum": lambda call: call(crossmodal.softmax_weighted_sum, torch.rand(5, 7), V, scale="auto"),
    "associate": lambda call: call(crossmodal.associate, Q, K, topk=0),
    "nested": lambda call: call(crossmodal.attention, jagged(2, 3), K, V),
    "nested with a mask": lambda call: call(crossmodal.attention, *[jagged(2, 3)] * 3, torch.ones(1)),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_call_raises_the_error_of_the_call(name):
    with pytest.raises((TypeError, ValueError)) as wanted:
        BAD_CALLS[name](lambda f, *args, **kwargs: f(*args, **kwargs))
    with pytest.raises(type(wanted.value)) as got:
        BAD_CALLS[name](explain)
    assert str(got.value) == str(wanted.value)


def test_missing_argument_is_a_type_error():
    with pytest.raises(TypeError, match="missing a required argument: 'value'"):
        explain(crossmodal.attention, Q, K)


@pytest.mark.parametrize(
    ("function", "came"),
    [
        (crossmodal.reference.attention, "crossmodal.reference.attention.attention"),
        (torch.nn.Linear, "torch.nn.modules.linear.Linear"),
        (3, "int"),
        ([], "list"),
    ],
    ids=["reference", "class", "number", "list"],
)
def test_what_is_not_explained_is_a_type_error_that_lists_what_is(function, came):
    with pytest.raises(TypeError) as caught:
        explain(function, Q, K, V)
    assert str(caught.value) == (
        "fn must be one of crossmodal.associate, crossmodal.attention, crossmodal.attention_varlen, crossmodal.fuse, "
        "crossmodal.nn.AttentionPool, crossmodal.nn.CrossModalAttention, crossmodal.nn.Linear, "
        "crossmodal.nn.MultiheadAttention, crossmodal.softmax_weighted_sum, crossmodal.weighted_sum, "
        f"torch.nn.functional.scaled_dot_product_attention, got {came}"
    )


def test_nothing_is_logged_or_refused(caplog, monkeypatch):
    monkeypatch.setattr(dispatch, "_told", set())
    with caplog.at_level(logging.WARNING, "crossmodal"), crossmodal.strict():
        for function, arguments in CALLS.values():
            explain(function, *arguments)
        explain(crossmodal.attention, Q.half(), K.half(), V.half(), softcap=2.0)
    assert not caplog.records


def test_printed_plan_has_a_line_for_each_detail_and_each_refusal():
    plan = Plan("attention", "avx2", {"tile": [6, 16], "gflop": 0.123456}, [("avx512", "this CPU does not have it")])
    assert str(plan).splitlines() == [
        "crossmodal.attention: avx2",
        "  tile   6 x 16",
        "  gflop  0.123",
        "  refused:",
        "    avx512: this CPU does not have it",
    ]
