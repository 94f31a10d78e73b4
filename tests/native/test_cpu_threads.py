"""What the CPU kernels do on several threads, under ThreadSanitizer."""

import os
import subprocess
from pathlib import Path

import pytest

from build_tools.flags import KERNEL_FLAGS, sanitizer_flags
from build_tools.settings import ROOT, Settings

SOURCES = (
    *("cpu/attention.cpp", "cpu/weighted_sum.cpp", "cpu/parallel.cpp", "cpu/isa.cpp", "cpu/kernels.cpp"),
    "cpu/isa/portable.cpp",
)


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """Instrumented, with portable kernels: how work is shared does not depend on the instruction set."""
    target = tmp_path_factory.mktemp("threads") / "cpu_threads"
    sources = [str(ROOT / "csrc" / source) for source in SOURCES]
    flags = ["-std=c++17", "-Icsrc", "-pthread", *KERNEL_FLAGS, *sanitizer_flags("thread")]
    command = [Settings.from_environment().cxx, *flags, "tests/native/cpu_threads.cpp", *sources, "-o", str(target)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if "cannot find -ltsan" in built.stderr or "libtsan" in built.stderr:
        pytest.skip("g++ has no ThreadSanitizer here")
    assert built.returncode == 0, built.stderr[-4000:]
    return target


@pytest.mark.slow
def test_threads_share_nothing_that_one_of_them_writes(program):
    # Exit status 66 is a race that ThreadSanitizer saw; a result that depends on the number of threads gives 1.
    result = subprocess.run(
        [program], capture_output=True, text=True, env={**os.environ, "TSAN_OPTIONS": "exitcode=66"}
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr[-4000:]}"
    assert "0 faults" in result.stdout
