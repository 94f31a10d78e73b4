"""Tests of the tests: every injected bug is noticed."""

import faulthandler
import multiprocessing
import re
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.accuracy import check
from tests.native import bugs
from tests.native.build import ROOT, build_kernels
from tests.native.emulated import MODES
from tests.native.problems import PROBLEMS, forward_only, masked_keys_may_be_nan


def problems_of(*beginnings):
    return [name for name in PROBLEMS if name.startswith(beginnings)]


# head_dim above 128 takes several panels and chunks: an instance of its own.
OTHERS = problems_of("WIDE", "SHORT", "SHARED", "QUEUED", "ONE", "FEW")
NARROW = [name for name in PROBLEMS if name not in OTHERS]
FORWARD = (["cuda/attention_fwd/f16_64.cu"], NARROW)
FORWARD_WIDE = (["cuda/attention_fwd/f16_128.cu"], ["WIDE"])
BACKWARD = (["cuda/attention_bwd/f16_64.cu"], NARROW)
SHORT = (["cuda/attention_bwd_short/f16_64.cu"], ["SHORT"])
FEW = (["cuda/attention_few/f16.cu", "cuda/merge_rows.cu"], problems_of("ONE", "FEW"))
SHARED = (
    ["cuda/attention_fwd/f16_64.cu", "cuda/attention_fwd/f16_128.cu", "cuda/merge_rows.cu"],
    problems_of("SHARED"),
)
QUEUED = (
    ["cuda/order_tiles.cu", "cuda/attention_fwd/f16_64.cu", "cuda/attention_bwd/f16_64.cu"],
    problems_of("QUEUED", "PACKED"),
)


def checks_of(names, *, backward):
    """By name, what has to fail."""

    def half(name):
        problem = replace(PROBLEMS[name], dtype=torch.float16)
        return problem if backward else forward_only(problem)

    problems = {name: partial(check, half(name)) for name in names}
    behind_masks = {
        f"NaN behind masks, {seqlen_q} queries": partial(masked_keys_may_be_nan, torch.float16, seqlen_q)
        for seqlen_q in (4, 19)
    }
    return {**problems, **behind_masks}


def with_bug(bug, folder):
    """A csrc/cuda of its own that has the bug; other folders are found in the real csrc."""
    shutil.copytree(ROOT / "csrc" / "cuda", folder / "cuda")
    file = folder / "cuda" / bug.file
    # However the formatter breaks its lines.
    right = r"\s+".join(map(re.escape, bug.right.split()))
    changed, places = re.subn(right, lambda _: bug.wrong, file.read_text())
    assert places == 1, f"{bug.file} has {places} places that read {bug.right!r}"
    file.write_text(changed)
    return folder


def first_failure(emulator, kernels, checks):
    """In which mode and problem it shows, or None. In a process of its own: a bug may crash."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def run():
        faulthandler.disable()  # a crash is what some bugs are for
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True, warn_only=True)  # fills what nobody has written with NaN
        emulator.load(kernels)
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
    process.join(timeout=60)
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


def is_noticed(emulator, bug, folder, sources, checks):
    kernels = build_kernels(folder, with_bug(bug, folder / "csrc"), sources)
    return first_failure(emulator, kernels, checks) is not None


@pytest.mark.parametrize("bug", bugs.FORWARD, ids=lambda bug: bug.name)
def test_forward_bug_is_noticed(emulator, emulated_once, bug, tmp_path):
    sources, names = FORWARD_WIDE if bug.wide else FORWARD
    assert is_noticed(emulator, bug, tmp_path, sources, checks_of(names, backward=False))


@pytest.mark.parametrize("bug", bugs.BACKWARD, ids=lambda bug: bug.name)
def test_backward_bug_is_noticed(emulator, emulated_once, bug, tmp_path):
    sources, names = BACKWARD
    assert is_noticed(emulator, bug, tmp_path, sources, checks_of(names, backward=True))


@pytest.mark.parametrize("bug", bugs.SHORT, ids=lambda bug: bug.name)
def test_bug_of_short_backward_is_noticed(emulator, emulated_once, bug, tmp_path):
    sources, names = SHORT
    assert is_noticed(emulator, bug, tmp_path, sources, checks_of(names, backward=True))


@pytest.mark.parametrize("bug", bugs.FEW_FORWARD, ids=lambda bug: bug.name)
def test_bug_of_few_queries_forward_is_noticed(emulator, emulated_once, bug, tmp_path):
    sources, names = FEW
    assert is_noticed(emulator, bug, tmp_path, sources, checks_of(names, backward=False))


@pytest.mark.parametrize("bug", bugs.FEW_BACKWARD, ids=lambda bug: bug.name)
def test_bug_of_few_queries_backward_is_noticed(emulator, emulated_once, bug, tmp_path):
    sources, names = FEW
    assert is_noticed(emulator, bug, tmp_path, sources, checks_of(names, backward=True))


@pytest.mark.parametrize("bug", bugs.SHARED, ids=lambda bug: bug.name)
def test_bug_of_shared_keys_is_noticed(emulator, emulated_once, bug, tmp_path):
    sources, names = SHARED
    assert is_noticed(emulator, bug, tmp_path, sources, checks_of(names, backward=False))


@pytest.mark.parametrize("bug", bugs.QUEUED, ids=lambda bug: bug.name)
def test_bug_of_queued_tiles_is_noticed(emulator, emulated_once, bug, tmp_path):
    sources, names = QUEUED
    assert is_noticed(emulator, bug, tmp_path, sources, checks_of(names, backward=True))


@pytest.mark.parametrize(
    ("sources", "backward"),
    [
        (FORWARD, False),
        (FORWARD_WIDE, False),
        (BACKWARD, True),
        (SHORT, True),
        (FEW, True),
        (SHARED, False),
        (QUEUED, True),
    ],
    ids=["forward", "wide", "backward", "short", "few", "shared", "queued"],
)
def test_without_a_bug_nothing_is_noticed(emulator, emulated_once, sources, backward, tmp_path):
    files, names = sources
    kernels = build_kernels(tmp_path, ROOT / "csrc", files)
    assert first_failure(emulator, kernels, checks_of(names, backward=backward)) is None
