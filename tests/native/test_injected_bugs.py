"""Tests of the tests: every injected bug is noticed."""

import multiprocessing
import re
import shutil
from dataclasses import replace

import pytest
import torch

from tests.accuracy import check
from tests.native import bugs
from tests.native.build import ROOT, build_kernels
from tests.native.emulated import MODES
from tests.native.problems import PROBLEMS, forward_only

# head_dim above 128 takes several panels and chunks: an instance of its own.
FORWARD = {"cuda/attention_fwd/bf16_64.cu": [name for name in PROBLEMS if name != "WIDE"]}
FORWARD_WIDE = {"cuda/attention_fwd/bf16_128.cu": ["WIDE"]}


def forward_problems(names):
    return {name: forward_only(replace(PROBLEMS[name], dtype=torch.bfloat16)) for name in names}


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


def first_failure(emulator, kernels, problems):
    """In which mode and problem it shows, or None. In a process of its own: a bug may crash."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def run():
        torch.set_num_threads(1)
        emulator.load(kernels)
        for name, problem in problems.items():
            for mode in MODES:
                emulator.set_mode(*mode)
                send.send((name, mode))
                try:
                    check(problem)
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


@pytest.mark.parametrize("bug", bugs.FORWARD, ids=lambda bug: bug.name)
def test_forward_bug_is_noticed(emulator, emulated_once, bug, tmp_path):
    ((source, names),) = (FORWARD_WIDE if bug.wide else FORWARD).items()
    kernels = build_kernels(tmp_path, with_bug(bug, tmp_path / "csrc"), [source])
    assert first_failure(emulator, kernels, forward_problems(names)) is not None


@pytest.mark.parametrize("sources", [FORWARD, FORWARD_WIDE], ids=["narrow", "wide"])
def test_without_a_bug_nothing_is_noticed(emulator, emulated_once, sources, tmp_path):
    ((source, names),) = sources.items()
    kernels = build_kernels(tmp_path, ROOT / "csrc", [source])
    assert first_failure(emulator, kernels, forward_problems(names)) is None
