"""Which instruction set the CPU kernels use: the table, the choice, the environment variable."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crossmodal import _library

ROOT = Path(__file__).resolve().parent.parent
NAMES = ["avx512_bf16", "avx512", "avx2", "portable"]
ISAS_OF_ZEN_3 = ("avx2", "fma", "f16c")
ISAS_OF_SKYLAKE_SERVER = (*ISAS_OF_ZEN_3, "avx512f", "avx512bw", "avx512vl", "avx512dq")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def import_with_isa(name: str) -> subprocess.CompletedProcess[str]:
    code = "from crossmodal import _library; print(_library.active_isa())"
    return run_python(code, CROSSMODAL_CPU_ISA=name)


def test_table_lists_every_instruction_set_best_first():
    assert [entry["name"] for entry in _library.cpu_isas()] == NAMES


def test_exactly_one_instruction_set_is_active():
    active = [entry["name"] for entry in _library.cpu_isas() if entry["active"]]
    assert active == [_library.active_isa()]


def test_portable_is_always_usable():
    portable = _library.cpu_isas()[-1]
    assert portable["compiled"] and portable["supported"]


def test_select_changes_the_active_instruction_set(isa):
    assert _library.active_isa() == isa


def test_selecting_an_unknown_name_lists_the_names_and_changes_nothing():
    before = _library.active_isa()
    with pytest.raises(ValueError) as error:
        _library.select_isa("sse9")
    assert str(error.value) == "isa must be one of portable, avx2, avx512, avx512_bf16, got 'sse9'"
    assert _library.active_isa() == before


def test_environment_forces_the_instruction_set():
    result = import_with_isa("portable")
    assert result.stdout.strip() == "portable", result.stderr


def test_empty_environment_variable_counts_as_unset():
    result = import_with_isa("")
    usable = [e["name"] for e in _library.cpu_isas() if e["compiled"] and e["supported"]]
    assert result.stdout.strip() == usable[0], result.stderr


def test_unknown_name_in_the_environment_is_a_value_error_that_lists_the_names():
    result = import_with_isa("foo")
    assert result.returncode == 1  # an exception, not an abort
    message = "CROSSMODAL_CPU_ISA must be one of portable, avx2, avx512, avx512_bf16, got 'foo'"
    assert result.stderr.splitlines()[-1] == f"ValueError: {message}"


# -- other CPUs than this one: isa.cpp is built with a pretended one ---------------------------


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """machine(features, compiled) -> isa.cpp as it behaves on a CPU of these features."""
    folder = tmp_path_factory.mktemp("isa")
    fake_cpu = folder / "fake_cpu.h"
    fake_cpu.write_text(
        "#include <cstring>\n"
        "inline bool has(const char* f) { return std::strstr(FEATURES, f) != nullptr; }\n"
        '#define __builtin_cpu_supports(feature) has(" " feature " ")\n'
    )

    def build(features: tuple[str, ...], compiled: list[str] = NAMES) -> ctypes.CDLL:
        library = folder / f"{'-'.join([*features, 'compiled', *compiled])}.so"
        defines = [f"-DCROSSMODAL_ISA_{name.upper()}" for name in compiled]
        defines.append(f'-DFEATURES=" {" ".join(features)} "')
        command = [os.environ.get("CXX", "g++"), "-std=c++17", "-shared", "-fPIC", *defines]
        command += ["-include", str(fake_cpu), "-I", str(ROOT / "csrc")]
        command += [str(ROOT / "csrc/cpu/isa.cpp"), "-o", str(library)]
        subprocess.run(command, check=True)
        loaded = ctypes.CDLL(str(library))
        loaded.crossmodal_cpu_isas.restype = ctypes.c_char_p
        loaded.crossmodal_select_isa.restype = ctypes.c_char_p
        return loaded

    if _library.build_info()["sanitizer"]:
        pytest.skip("the pretended machine is not instrumented")
    return build


def active(library: ctypes.CDLL) -> str:
    table = json.loads(library.crossmodal_cpu_isas())
    return next(entry["name"] for entry in table if entry["active"])


@pytest.mark.parametrize(
    ("features", "best"),
    [
        ((), "portable"),
        (("avx2", "fma"), "portable"),
        (ISAS_OF_ZEN_3, "avx2"),
        ((*ISAS_OF_ZEN_3, "avx512f"), "avx2"),
        (ISAS_OF_SKYLAKE_SERVER, "avx512"),
        ((*ISAS_OF_SKYLAKE_SERVER, "avx512bf16"), "avx512_bf16"),
        ((*ISAS_OF_ZEN_3, "avx512bf16"), "avx2"),
    ],
)
def test_the_best_instruction_set_of_the_cpu_is_chosen(machine, monkeypatch, features, best):
    monkeypatch.delenv("CROSSMODAL_CPU_ISA", raising=False)
    assert active(machine(features)) == best


def test_selecting_what_the_cpu_lacks_says_so_and_lists_what_it_has(machine):
    error = machine(ISAS_OF_ZEN_3).crossmodal_select_isa(b"avx512_bf16").decode()
    assert error == ("isa 'avx512_bf16' is not supported by this CPU, choose one of portable, avx2")


def test_selecting_what_was_not_compiled_says_so_and_lists_what_was(machine):
    library = machine(ISAS_OF_SKYLAKE_SERVER, ["avx2"])
    error = library.crossmodal_select_isa(b"avx512").decode()
    assert error == "isa 'avx512' is not in this build, choose one of portable, avx2"
