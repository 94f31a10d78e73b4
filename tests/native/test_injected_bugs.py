"""Tests of the tests: every injected bug is noticed."""

import faulthandler
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch

from tests import test_poison
from tests.accuracy import check
from tests.native.bugs import associate, attention_bwd, attention_few, attention_fwd, weighted_sum
from tests.native.bugs.bug import Bug
from tests.native.build import build_mutants
from tests.native.emulated import MODES, tf32_allowed
from tests.native.problems import (
    EVERY_PROBLEM,
    PROBLEMS,
    SUMMARIES,
    WEIGHTED_SUMS,
    equal_links_keep_their_order,
    forward_only,
    in_dtype,
    infinite_value_of_the_last_key_arrives,
    masked_keys_may_be_nan,
    problems_of,
    rounds_to_tf32,
)
from tests.ops import test_weighted_sum

NO_BUG = -1


@dataclass(frozen=True)
class Group:
    """Bugs of one kernel, and the problems that it has to get right."""

    bugs: tuple[Bug, ...]
    problems: list[str]
    backward: bool = True
    others: tuple[str, ...] = ("NaN behind masks of 4 queries", "NaN behind masks of 19 queries")
    check: Callable[[Any], None] = check

    def checks(self):
        """By name, what has to fail."""

        def of(name):
            problem = in_dtype(EVERY_PROBLEM[name], torch.float16)
            return problem if self.backward else forward_only(problem)

        return {
            **{name: partial(self.check, of(name)) for name in self.problems},
            **{name: OTHER_CHECKS[name] for name in self.others},
        }


def nan_behind_masks_in_tf32():
    with tf32_allowed():
        masked_keys_may_be_nan(torch.float32, 19)


OTHER_CHECKS = {
    "NaN behind masks of 4 queries": partial(masked_keys_may_be_nan, torch.float16, 4),
    "NaN behind masks of 19 queries": partial(masked_keys_may_be_nan, torch.float16, 19),
    "NaN behind masks in tf32": nan_behind_masks_in_tf32,
    "equal links": partial(equal_links_keep_their_order, torch.float16),
    "Inf in the last value": partial(infinite_value_of_the_last_key_arrives, torch.float16),
    "NaN in weighted sums": partial(
        test_weighted_sum.test_keys_skipped_for_every_query_may_be_nan, None, torch.float16, "dense"
    ),
    "NaN in weighted sums, by key": partial(
        test_weighted_sum.test_keys_skipped_for_every_query_may_be_nan, None, torch.float16, "per key"
    ),
    "NaN that some queries see": partial(
        test_weighted_sum.test_nan_reaches_the_queries_that_see_it_and_no_other, None, torch.float16, "emulated"
    ),
    "NaN in weights beyond the length": partial(
        test_poison.test_skipped_values_of_a_weighted_sum_may_be_nan, None, torch.float16
    ),
    "gradients of skipped weights": partial(
        test_weighted_sum.test_gradient_of_a_skipped_weight_is_zero_whatever_dout, None, torch.float16
    ),
}


WEIGHTED_SUM_CHECKS = tuple(name for name in OTHER_CHECKS if "weight" in name or name == "NaN that some queries see")

# head_dim above 128 takes several panels and chunks: an instance of its own.
OTHERS = problems_of("WIDE", "SHORT", "SHARED", "QUEUED", "ONE", "FEW")
NARROW = [name for name in PROBLEMS if name not in OTHERS]
GROUPS = {
    "forward": Group(attention_fwd.FORWARD, NARROW, backward=False),
    "wide": Group(attention_fwd.WIDE, ["WIDE"], backward=False),
    "backward": Group(attention_bwd.BACKWARD, NARROW),
    "short": Group(attention_bwd.SHORT, problems_of("SHORT")),
    "tf32": Group(attention_fwd.TF32, ["PLAIN", "TRIO"], others=("NaN behind masks in tf32",), check=rounds_to_tf32),
    "few forward": Group(
        attention_few.FEW_FORWARD,
        problems_of("ONE", "FEW"),
        backward=False,
        others=("NaN behind masks of 4 queries", "Inf in the last value"),
    ),
    "few backward": Group(attention_few.FEW_BACKWARD, problems_of("ONE", "FEW")),
    "shared": Group(attention_fwd.SHARED, problems_of("SHARED"), backward=False),
    "queued": Group(attention_fwd.QUEUED, problems_of("QUEUED", "PACKED")),
    "associate": Group(associate.ASSOCIATE, list(SUMMARIES), others=("equal links",)),
    "weighted sum": Group(weighted_sum.WEIGHTED_SUM, list(WEIGHTED_SUMS), others=WEIGHTED_SUM_CHECKS),
}
ALL = tuple(bug for group in GROUPS.values() for bug in group.bugs)


@pytest.fixture(scope="session")
def mutants(emulator):
    return build_mutants(ALL)


def first_failure(emulator, kernels, number, checks, timeout=60):
    """In which problem and mode a bug shows, or None. In a process of its own: a bug may crash, or wait for ever."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def run():
        faulthandler.disable()  # a crash is what some bugs are for
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True, warn_only=True)  # fills what nobody has written with NaN
        emulator.load(kernels)
        emulator.set_bug(number)
        for name, run_check in checks.items():
            for mode in MODES:
                emulator.set_mode(*mode)
                send.send((name, mode))
                try:
                    run_check()
                except (AssertionError, RuntimeError):
                    return
        send.send(None)

    process = context.Process(target=run)
    process.start()
    send.close()
    process.join(timeout)
    if process.is_alive():
        process.kill()
    last = missing = object()
    while receive.poll():
        try:
            last = receive.recv()
        except EOFError:
            break
    assert last is not missing, "the kernels could not be loaded"
    return last


@pytest.mark.parametrize(
    ("group", "bug"),
    [pytest.param(group, bug, id=f"{name}-{bug.name}") for name, group in GROUPS.items() for bug in group.bugs],
)
def test_bug_is_noticed(emulator, emulated_once, mutants, group, bug):
    checks = group.checks()
    first = {bug.by: checks[bug.by]} if bug.by else {}
    assert first_failure(emulator, mutants, ALL.index(bug), {**first, **checks}) is not None


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_without_a_bug_nothing_is_noticed(emulator, emulated_once, mutants, group):
    assert first_failure(emulator, mutants, NO_BUG, group.checks(), timeout=600) is None
