"""Random problems over the whole argument space, each checked by the two-reference rule.

Without options the same problems are drawn each time, so that a red run is always the change's fault.
`pytest tests/test_random.py --runs 100000` draws that many fresh ones, and says how far it is; `--runs-seed 7` says
which, so that two processes can share the work and a run can be repeated.
"""

import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import crossmodal
from crossmodal import _library
from tests.accuracy import built, check, check_reference
from tests.calls import call_of
from tests.conftest import USABLE_ISAS
from tests.drawing import associations, fusions, varlens, weighted_sums

SHARES = {
    "fuse": 1000,
    "attention": 800,
    "attention_varlen": 400,
    "weighted_sum": 250,
    "softmax_weighted_sum": 250,
    "associate": 600,
}
PROBLEMS = {
    "fuse": fusions(as_attention=False),
    "attention": fusions(as_attention=True),
    "attention_varlen": varlens(),
    "weighted_sum": weighted_sums(softmax=False),
    "softmax_weighted_sum": weighted_sums(softmax=True),
    "associate": associations(),
}
# Hypothesis remembers what it has drawn, to draw something else; a fresh start now and then keeps that small.
PORTION = 500


@pytest.fixture
def restored():
    """The instruction set and the number of threads, however the test ends."""
    isa, threads = _library.active_isa(), torch.get_num_threads()
    yield
    _library.select_isa(isa)
    torch.set_num_threads(threads)


@pytest.fixture(params=PROBLEMS)
def op(request):
    return request.param


@pytest.mark.slow
def test_random_problems_are_as_accurate_as_torch(op, request, capsys, restored):
    def run(problem, isa, threads):
        _library.select_isa(isa)
        torch.set_num_threads(threads)
        check(problem)

    draw(op, request, capsys, run, isa=st.sampled_from(USABLE_ISAS), threads=st.sampled_from([1, 1, 1, 2]))


@pytest.mark.slow
def test_two_threads_give_the_bits_of_one(op, request, capsys, restored):
    """But for gradients that are sums over samples, heads or queries; these the rule above judges."""

    def run(problem, isa):
        _library.select_isa(isa)
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            try:
                with crossmodal.strict():  # plain torch makes no such promise
                    results.append(call_of(problem)(crossmodal, problem, built(problem)))
            except RuntimeError as refusal:
                assert "no kernel takes this call" in str(refusal)
                return
        one, two = results
        for name, tensor in one.items():
            if name.rpartition(".")[2] not in ("mask", "bias", "sink"):
                assert torch.equal(tensor, two[name]), name

    draw(op, request, capsys, run, share=0.25, isa=st.sampled_from(USABLE_ISAS))


@pytest.mark.slow
def test_reference_means_what_the_formulas_say(op, request, capsys):
    def run(problem):
        check_reference(problem)

    draw(op, request, capsys, run, share=0.25)


def draw(op: str, request: Any, capsys: Any, run: Callable[..., None], share: float = 1.0, **strategies: Any) -> None:
    """Hands as many problems to `run` as are due to `op`, or that share of them."""
    runs, first = request.config.getoption("--runs"), request.config.getoption("--runs-seed")
    total = SHARES[op] if runs is None else runs * SHARES[op] / sum(SHARES.values())
    total = max(1, round(share * total))
    if runs is not None and first is None:
        first = time.time_ns() % 2**32
    start, done = time.monotonic(), 0
    while done < total:
        portion = min(PORTION, total - done)
        count = 0

        def counted(**drawn):
            nonlocal count
            count += 1
            run(**drawn)

        test = settings(
            max_examples=portion,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )(given(problem=PROBLEMS[op], **strategies)(counted))
        seed(zlib.crc32(f"{op} {first or 0} {done}".encode()))(test)()
        assert count >= portion
        done += portion
        if runs is not None:
            with capsys.disabled():
                print(f"\r{op} --runs-seed {first}: {done} of {total}, {time.monotonic() - start:.0f} s", flush=True)
