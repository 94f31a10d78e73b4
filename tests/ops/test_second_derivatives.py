"""The gradient of a gradient, of `attention`, `fuse` and `attention_varlen`: kernels beside the formulas."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from torch import Tensor

import crossmodal
from crossmodal import Source, reference
from tests.accuracy import built
from tests.calls import Results, fusion_outputs, varlen_outputs
from tests.drawing import fusions, varlens
from tests.problems import FeatureOrder, Fusion, Modality, Sink, Term, Varlen
from tests.problems.feature_order import FEATURES
from tests.tolerance import assert_as_accurate, eps_of, judge_by_orders

BASE = Fusion(
    modalities=(Modality(37),), batch=2, heads=4, seqlen_q=13, head_dim=24, head_dim_v=20,
    asked=frozenset({"out", "lse"}), as_attention=True,
)  # fmt: skip
FULL, PER_KEY, PER_QUERY = (
    Term(torch.float32, broadcast)
    for broadcast in ((False,) * 4, (False, True, True, False), (True, False, False, True))
)
THREE = (Modality(9), None, Modality(70, lengths=torch.int64, bias=FULL), Modality(21, mask=PER_KEY, heads_k=2))

Problem = Fusion | Varlen
PROBLEMS: dict[str, Problem] = {
    "plain": BASE,
    "one query": replace(BASE, seqlen_q=1),
    "one key": replace(BASE, modalities=(Modality(1),)),
    "no key": replace(BASE, modalities=(Modality(0),)),
    "no query": replace(BASE, seqlen_q=0),
    "several blocks": replace(BASE, seqlen_q=150, batch=1),
    "several chunks of keys": replace(BASE, modalities=(Modality(700),), batch=1),
    "several of both": replace(BASE, modalities=(Modality(530, lengths=torch.int32),), seqlen_q=130, heads=2),
    "lengths": replace(BASE, modalities=(Modality(37, lengths=torch.int64),), query_lengths=torch.int32),
    "bool mask": replace(BASE, modalities=(Modality(37, mask=replace(FULL, dtype=torch.bool, hides=0.5)),)),
    "full bias": replace(BASE, modalities=(Modality(37, mask=FULL),)),
    "bias of keys": replace(BASE, modalities=(Modality(37, mask=PER_KEY),)),
    "bias of queries": replace(BASE, modalities=(Modality(37, mask=PER_QUERY),)),
    "bias that hides": replace(BASE, modalities=(Modality(37, mask=replace(FULL, hides=0.6)),)),
    "bfloat16 bias": replace(BASE, modalities=(Modality(37, mask=Term(torch.bfloat16, (False,) * 4)),)),
    "causal": replace(BASE, is_causal=True, seqlen_q=37),
    "causal, more queries": replace(BASE, is_causal=True, seqlen_q=50),
    "causal, aligned below": replace(
        BASE, is_causal=True, causal_align="lower_right", modalities=(Modality(37, lengths=torch.int64),),
        query_lengths=torch.int64,
    ),
    "window over chunks": replace(
        BASE, modalities=(Modality(600),), seqlen_q=90, window_size=(40, 3), causal_align="lower_right", batch=1
    ),
    "grouped queries": replace(BASE, modalities=(Modality(37, heads_k=2),)),
    "grouped, several chunks": replace(BASE, modalities=(Modality(530, heads_k=1),), seqlen_q=9),
    "transposed": replace(
        BASE, modalities=(Modality(37, key_layout="heads_inside", value_layout="heads_inside"),),
        query_layout="heads_inside", dout_layout="heads_inside",
    ),
    "sink": replace(BASE, sink=Sink(), modalities=(Modality(37, lengths=torch.int64),)),
    "softcap": replace(BASE, softcap=1.5, magnitude=2.0, modalities=(Modality(37, mask=FULL),)),
    "dropout": replace(BASE, dropout_p=0.4, dropout_seed=7),
    "dropout over chunks": replace(BASE, dropout_p=0.4, modalities=(Modality(530),), seqlen_q=9),
    "everything": replace(
        BASE, sink=Sink(), softcap=3.0, dropout_p=0.2, query_lengths=torch.int64,
        modalities=(Modality(300, lengths=torch.int32, mask=replace(FULL, hides=0.2), heads_k=2),),
    ),
    "three sources": replace(BASE, modalities=THREE, as_attention=False, asked=frozenset({"out", "lse", "mass"})),
    "three sources over chunks": replace(
        BASE, modalities=(Modality(300), *THREE), as_attention=False, sink=Sink(), asked=frozenset({"out", "mass"}),
    ),
    "query alone": replace(BASE, differentiated=frozenset({"query"})),
    "values alone": replace(BASE, differentiated=frozenset({"value"})),
    "bias alone": replace(BASE, modalities=(Modality(37, mask=FULL),), differentiated=frozenset({"mask"})),
    "through lse alone": replace(BASE, asked=frozenset({"lse"})),
    "packed": Varlen((5, 0, 70, 3), (7, 4, 300, 0), beyond_q=2, beyond_k=3, heads=4, heads_k=2, head_dim=24,
                     head_dim_v=20, sink=Sink(), poisoned=True, asked=frozenset({"out", "lse"})),
    "packed and causal": Varlen((5, 9), (9, 5), heads=2, head_dim=16, head_dim_v=16, is_causal=True,
                                causal_align="lower_right", softcap=2.0, dropout_p=0.2),
}  # fmt: skip


def second_derivatives(namespace: Any, problem: Problem, tensors: Any, flowing: Results) -> Results:
    """The gradients of <flowing, gradients> by every leaf and by what flowed into the outputs."""
    leaves = tensors.leaves()
    cotangents = {name: c.detach().requires_grad_() for name, c in tensors.cotangents.items()}
    inputs = {**leaves, **cotangents}
    found = {name: torch.zeros_like(t) for name, t in inputs.items()}
    outputs = (varlen_outputs if isinstance(problem, Varlen) else fusion_outputs)(namespace, problem, tensors)
    into = [name for name in cotangents if name in outputs and outputs[name].requires_grad]
    if not leaves or not into:
        return found
    first = torch.autograd.grad(
        [outputs[name] for name in into],
        list(leaves.values()),
        [cotangents[name] for name in into],
        create_graph=True,
        allow_unused=True,
    )
    back = {name: g for name, g in zip(leaves, first, strict=True) if g is not None and g.requires_grad}
    if back:
        second = torch.autograd.grad(
            list(back.values()), list(inputs.values()), [flowing[name] for name in back], allow_unused=True
        )
        found.update({name: g for name, g in zip(found, second, strict=True) if g is not None})
    return {name: g.detach() for name, g in found.items()}


def flowing_into(tensors: Any) -> Results:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf.dtype)
        for name, leaf in tensors.leaves().items()
    }


def in_float64(tensors: Any) -> Any:
    def wide(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or not tensor.is_floating_point():
            return tensor
        return tensor.detach().double().requires_grad_(tensor.requires_grad)

    cotangents = {name: c.double() for name, c in tensors.cotangents.items()}
    same = replace(tensors, query=wide(tensors.query), sink=wide(tensors.sink), cotangents=cotangents)
    if not hasattr(tensors, "sources"):
        return replace(same, key=wide(tensors.key), value=wide(tensors.value))
    sources = [
        s if s is None else s._replace(key=wide(s.key), value=wide(s.value), mask=wide(s.mask), bias=wide(s.bias))
        for s in tensors.sources
    ]
    return replace(same, sources=sources)


def check(problem: Problem) -> None:
    """As accurate as plain torch, both measured against plain torch in float64."""
    tensors = built(problem)
    flowing = flowing_into(tensors)
    got = second_derivatives(crossmodal, problem, tensors, flowing)
    wide = replace(problem, dtype=torch.float64)
    exact = second_derivatives(reference, wide, in_float64(tensors), {name: f.double() for name, f in flowing.items()})

    def in_order(number: int) -> Results:
        order = FeatureOrder(number)
        reordered = {n: order.apply(f) if n.rpartition(".")[2] in FEATURES else f for n, f in flowing.items()}
        return order.undo(second_derivatives(reference, problem, tensors.reordered(order), reordered))

    # What is smaller beside the other results than one rounding is a difference of numbers of their size.
    largest = max((float(e.abs().max()) for e in exact.values() if e.numel()), default=0.0)

    def judge(references: list[Results]) -> None:
        for name, result in got.items():
            wanted = exact[name].numpy()
            eps = eps_of(problem.dtype, result.dtype)
            magnitude = np.maximum(np.abs(wanted), eps * largest)
            assert_as_accurate(name, result, [r[name] for r in references], wanted, eps, magnitude)

    judge_by_orders(judge, second_derivatives(reference, problem, tensors, flowing), in_order)


@pytest.fixture
def by_kernels(monkeypatch):
    """The reference may not answer."""
    for operator in ("_fusion", "varlen"):
        monkeypatch.setattr(sys.modules[f"crossmodal.ops.{operator}"], "gradients_of_reference", None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_as_accurate_as_torch(name, dtype, isa, by_kernels):
    check(replace(PROBLEMS[name], dtype=dtype))


@pytest.mark.slow
def test_random_problems_are_as_accurate_as_torch(isa, by_kernels):
    @seed(7)
    @settings(max_examples=60, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(fusions(as_attention=False), fusions(as_attention=True), varlens())
    def run(fuse, attention, varlen):
        for problem in (fuse, attention, varlen):
            if problem.sink is not None:
                # Far above the scores it makes every weight as inexact as its exponent, whoever computes it.
                problem = replace(problem, sink=replace(problem.sink, offset=0.0))
            if problem.head_dim > 0:
                check(problem)

    run()


def leaves_of(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("options", [
    {}, {"softcap": 1.0}, {"is_causal": True}, {"is_causal": True, "causal_align": "lower_right"},
    {"dropout_p": 0.3, "dropout_seed": torch.tensor([3])}, {"key_lengths": torch.tensor([4, 0])},
], ids=lambda options: ", ".join(options))  # fmt: skip
def test_attention_passes_gradgradcheck(options, by_kernels):
    q, k, v, bias = leaves_of((2, 2, 3, 5), (2, 2, 6, 5), (2, 2, 6, 4), (1, 2, 3, 6))
    assert torch.autograd.gradgradcheck(
        lambda *x: crossmodal.attention(*x, return_lse=True, **options)[slice(0, 1 if "key_lengths" in options else 2)],
        (q, k, v, bias),
    )


def test_fuse_passes_gradgradcheck(by_kernels):
    q, k, v, k2, v2, bias = leaves_of(
        (1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4), (1, 1, 2, 4), (1, 1, 2, 4), (1, 1, 3, 2)
    )
    sink = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def call(q, k, v, k2, v2, bias, sink):
        sources = [Source(k, v), None, Source(k2, v2, bias=bias)]
        return tuple(crossmodal.fuse(q, sources, sink=sink, return_lse=True, return_mass=True))

    assert torch.autograd.gradgradcheck(call, (q, k, v, k2, v2, bias, sink))


def penalty_of(
    namespace: Any, query: Tensor, sources: list[Source | None], **options: Any
) -> tuple[Tensor, list[Tensor]]:
    """The squared length of a gradient, and its gradient by query, keys and values."""
    leaves = [query, *(t for s in sources if s is not None for t in (s.key, s.value))]
    out = namespace.fuse(query, sources, **options).out
    first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
    penalty = sum(g.square().sum() for g in first)
    return penalty, list(torch.autograd.grad(penalty, leaves))


def source(keys: int, lengths: list[int] | None = None, dtype: torch.dtype = torch.float32) -> Source:
    key, value = (torch.randn(2, 3, keys, 16, dtype=dtype, requires_grad=True) for _ in range(2))
    return Source(key, value, None if lengths is None else torch.tensor(lengths))


def test_missing_modality_is_zero_never_nan(by_kernels):
    query = torch.randn(2, 3, 5, 16, requires_grad=True)
    here, missing = source(7), source(4, [0, 0])
    _, (dq, dk, _, dk_missing, dv_missing) = penalty_of(crossmodal, query, [here, missing])
    assert not dk_missing.any() and not dv_missing.any() and dk.isfinite().all()
    _, (dq_without, dk_without, _) = penalty_of(crossmodal, query, [here, None])
    torch.testing.assert_close((dq, dk), (dq_without, dk_without))
    _, gradients = penalty_of(crossmodal, query, [missing])
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_hidden_may_be_nan(dtype, isa, by_kernels):
    """Not a bit of the rest changes."""
    query = torch.randn(2, 3, 5, 16, dtype=dtype, requires_grad=True)
    hidden = source(9, [6, 0], dtype)
    shown = source(40, dtype=dtype)
    rows = torch.tensor([5, 3])
    _, wanted = penalty_of(crossmodal, query, [hidden, shown], query_lengths=rows)
    with torch.no_grad():
        query[1, :, 3:] = float("nan")
        for tensor in (hidden.key, hidden.value):
            tensor[0, :, 6:] = float("nan")
            tensor[1] = float("inf")
    _, got = penalty_of(crossmodal, query, [hidden, shown], query_lengths=rows)
    for g, w in zip(got, wanted, strict=True):
        assert torch.equal(g, w)


def test_visible_nan_is_not_lost(by_kernels):
    query, keys = torch.randn(2, 3, 5, 16, requires_grad=True), source(7)
    with torch.no_grad():
        keys.value[0, 0, 2, 3] = float("nan")
    _, (dq, *_) = penalty_of(crossmodal, query, [keys])
    assert dq[0, 0].isnan().all() and dq[0, 1:].isfinite().all() and dq[1].isfinite().all()


def test_repeats_bit_for_bit(isa, by_kernels):
    query, sources = torch.randn(2, 3, 70, 16, requires_grad=True), [source(300), source(33, [33, 8])]
    _, first = penalty_of(crossmodal, query, sources)
    _, second = penalty_of(crossmodal, query, sources)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_does_not_depend_on_the_number_of_threads(by_kernels):
    query, sources = torch.randn(2, 3, 70, 16, requires_grad=True), [source(300), source(33, [33, 8])]
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(penalty_of(crossmodal, query, sources)[1])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_third_derivative_is_that_of_the_reference():
    q, k = leaves_of((1, 2, 3, 4), (1, 2, 5, 4))

    def third(namespace: Any) -> tuple[Tensor, ...]:
        value = namespace.attention(q, k, k).square().sum()
        for _ in range(2):
            (value,) = torch.autograd.grad(value, q, create_graph=True)
            value = value.square().sum()
        return torch.autograd.grad(value, (q, k))

    for got, wanted in zip(third(crossmodal), third(reference), strict=True):
        torch.testing.assert_close(got, wanted)


def test_gradient_penalty_trains_an_adversary(by_kernels):
    """An adversary with a gradient penalty (Gulrajani et al., 2017) learns the same with kernels as without."""

    def train(namespace: Any) -> list[float]:
        generator = torch.Generator().manual_seed(3)
        draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
        real, fake = draw(8, 2, 6, 4) + 0.5, draw(8, 2, 6, 4)
        probe, readout = draw(1, 2, 3, 4).requires_grad_(), draw(4, 1).requires_grad_()
        optimizer = torch.optim.Adam([probe, readout], lr=0.05)

        def critic(x: Tensor) -> Tensor:
            return (namespace.attention(probe.expand(8, -1, -1, -1), x, x) @ readout).mean(dim=(1, 2, 3))

        losses = []
        for _ in range(15):
            between = (real + draw(8, 1, 1, 1).sigmoid() * (fake - real)).requires_grad_()
            (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
            penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
            loss = critic(fake).mean() - critic(real).mean() + 10 * penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    got = train(crossmodal)
    torch.testing.assert_close(got, train(reference))
    assert got[-1] < got[0]


def test_memory_does_not_grow_with_queries_times_keys():
    """A subprocess, whose peak is its own: 6,000 x 6,000 scores would be 144 MB for each array."""
    found = subprocess.run([sys.executable, "-c", LONG], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 60 * 2**20, found.stdout


LONG = """
import resource
import torch
import crossmodal

def penalty(n):
    q, k = (torch.randn(1, 1, n, 16, requires_grad=True) for _ in range(2))
    first = torch.autograd.grad(crossmodal.attention(q, k, k).square().sum(), (q, k), create_graph=True)
    torch.autograd.grad(sum(g.square().sum() for g in first), (q, k))

torch.set_num_threads(1)
penalty(64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
penalty(6000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_explain_says_who_differentiates_twice():
    q = torch.randn(1, 2, 3, 4)
    for plan in (
        crossmodal.explain(crossmodal.attention, q, q, q, softcap=2.0),
        crossmodal.explain(crossmodal.fuse, q, [Source(q, q), None]),
    ):
        assert plan.details["second derivatives"] == "compiled"
    narrow = q[..., :0]
    plan = crossmodal.explain(crossmodal.attention, narrow, narrow, q)
    assert plan.details["second derivatives"] == "plain torch: no kernel without features"
    plan = crossmodal.explain(crossmodal.associate, q, q)
    assert plan.details["second derivatives"] == "plain torch: this function has no kernel for them"
