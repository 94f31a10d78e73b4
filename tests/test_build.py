"""The build: settings, what ninja rebuilds, the checks on what was compiled."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from build_tools import check_cuda, settings
from build_tools.check_weak_symbols import weak_symbols
from build_tools.flags import gencode_flags
from build_tools.settings import BuildError, CudaToolkit, Settings

TOOLKIT = CudaToolkit(nvcc="nvcc", version="13.0", library_dir=Path("/x"), archs=("80", "90a"))


# -- settings ----------------------------------------------------------------------------------


def test_unknown_cuda_mode_lists_the_modes(monkeypatch):
    monkeypatch.setenv("CROSSMODAL_CUDA", "yes")
    with pytest.raises(BuildError, match="CROSSMODAL_CUDA must be one of auto, 0, 1, got 'yes'"):
        settings.find_cuda()


def test_unknown_sanitizer_lists_the_sanitizers(monkeypatch):
    monkeypatch.setenv("CROSSMODAL_SANITIZE", "memory")
    with pytest.raises(BuildError, match="must be one of address, undefined, thread"):
        Settings.from_environment()


@pytest.fixture
def without_nvcc(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_cuda_is_left_out_where_there_is_no_nvcc(monkeypatch, without_nvcc):
    monkeypatch.setenv("CROSSMODAL_CUDA", "auto")
    assert settings.find_cuda() is None


def test_cuda_that_is_asked_for_without_nvcc_is_an_error(monkeypatch, without_nvcc):
    monkeypatch.setenv("CROSSMODAL_CUDA", "1")
    with pytest.raises(BuildError, match="no nvcc on PATH"):
        settings.find_cuda()


def test_cuda_that_is_not_wanted_is_left_out(monkeypatch):
    monkeypatch.setenv("CROSSMODAL_CUDA", "0")
    assert settings.find_cuda() is None


@pytest.mark.parametrize("archs", ["8.0;9.0", "80 90", "sm_80", "70"])
def test_other_spellings_and_older_cuda_archs_are_one_line(archs, monkeypatch, tmp_path):
    (tmp_path / "nvcc").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("CROSSMODAL_CUDA", "1")
    monkeypatch.setenv("CROSSMODAL_CUDA_ARCHS", archs)
    with pytest.raises(BuildError, match=r"CROSSMODAL_CUDA_ARCHS must look like '80;90a', 80 or newer, got"):
        settings.find_cuda()


def test_empty_list_of_cuda_archs_is_an_error(monkeypatch, tmp_path):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("CROSSMODAL_CUDA", "auto")
    monkeypatch.setenv("CROSSMODAL_CUDA_ARCHS", ";")
    with pytest.raises(BuildError, match="CROSSMODAL_CUDA_ARCHS"):
        settings.find_cuda()


def test_missing_compiler_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match="no C\\+\\+ compiler 'no-such-compiler'"):
        Settings.from_environment()


def test_ptx_is_of_an_architecture_that_newer_gpus_run():
    assert gencode_flags(replace(TOOLKIT, archs=("90a",))) == ["-gencode=arch=compute_90,code=[sm_90a,compute_90]"]


def test_one_ptx_of_the_oldest_architecture_serves_all():
    assert gencode_flags(replace(TOOLKIT, archs=("90a", "100", "80"))) == [
        "-gencode=arch=compute_80,code=[sm_90a,sm_100,sm_80,compute_80]"
    ]


# -- what ninja rebuilds, on a project of a few lines ------------------------------------------


class Project:
    """A source tree of the same folders as ours, with one line in each file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings = Settings(
            cxx="g++",
            compiler="g++",
            machine="x86_64",
            torch_include=root,
            cuda=None,
            sanitizer=None,
        )
        self.write("csrc/core/number.h", "inline int number() { return 1; }")
        self.write("csrc/ops.cpp", "int ops() { return 0; }")
        self.write("csrc/introspection.cpp", "int introspection() { return 0; }")
        self.write("csrc/cpu/kernel.cpp", '#include "core/number.h"\nint k() { return number(); }')
        self.write("csrc/cpu/isa/portable.cpp", "int portable() { return 0; }")
        self.write("csrc/exports.map", "{ global: *; };")

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def build(self, **changes) -> list[str]:
        """Builds; returns the objects that were compiled."""
        ninja_file = pytest.importorskip("build_tools.ninja_file", reason="needs ninja, pybind11")
        chosen = replace(self.settings, **changes)
        build = ninja_file.NinjaWriter(chosen, "0", self.root, Path("build")).write()
        result = subprocess.run(build.command("-v"), cwd=self.root, capture_output=True, text=True)
        result.check_returncode()
        return re.findall(r" -c .* -o build/(?:native/[^/]*/)?(\S+)", result.stdout)


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_every_folder_is_compiled(project):
    compiled = set(project.build())
    assert {"ops.cpp.o", "cpu/kernel.cpp.o", "cpu/isa/portable.cpp.o"} <= compiled


def test_nothing_changed_compiles_nothing(project):
    project.build()
    assert project.build() == []


def test_changed_header_compiles_those_that_include_it(project):
    project.build()
    project.write("csrc/core/number.h", "inline int number() { return 2; }")
    assert project.build() == ["cpu/kernel.cpp.o"]


def test_changed_settings_compile_what_they_touch(project):
    project.build()
    assert project.build(torch_include=project.root / "other") == ["ops.cpp.o"]


def test_new_source_is_found(project):
    project.build()
    project.write("csrc/torch/new.cpp", "int fresh() { return 0; }")
    assert project.build() == ["torch/new.cpp.o"]


def test_other_machines_compile_the_portable_kernels_only(project):
    project.write("csrc/cpu/isa/avx2.cpp", "int avx2() { return 0; }")
    assert "cpu/isa/avx2.cpp.o" not in project.build(machine="aarch64")


def test_weak_symbol_in_an_instruction_set_stops_the_build(project):
    project.write("csrc/cpu/isa/portable.cpp", "inline int f() { return 0; }\nint (*g)() = f;")
    with pytest.raises(subprocess.CalledProcessError):
        project.build()


# -- checks on what was compiled ---------------------------------------------------------------


def compile_object(folder: Path, code: str) -> str:
    source, target = folder / "code.cpp", folder / "code.o"
    source.write_text(code)
    subprocess.run(["g++", "-c", str(source), "-o", str(target)], check=True)
    return str(target)


def test_inline_function_is_a_weak_symbol(tmp_path):
    code = "inline int twice(int x) { return 2 * x; }\nint f(int x) { return twice(x); }"
    assert weak_symbols(compile_object(tmp_path, code)) == ["twice(int)"]


def test_inline_function_in_an_unnamed_namespace_is_none(tmp_path):
    code = "namespace { inline int twice(int x) { return 2 * x; } }\nint f(int x) { return twice(x); }"
    assert weak_symbols(compile_object(tmp_path, code)) == []


FORWARD = "_ZN10crossmodal4cuda20attention_fwd_kernelINS0_9MmaEngineINS_7Float16EEELi64ELb1EEEvi"
USAGE = f"""
Fatbin elf code:
================
arch = sm_80
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _Z1av:
  REG:96 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:4136 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _Z1bv:
  REG:255 STACK:16 SHARED:1024 LOCAL:0 CONSTANT[0]:4136 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin elf code:
================
arch = sm_90a

Resource usage:
 Function {FORWARD}:
  REG:169 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:4136 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin ptx code:
================
arch = sm_80
"""


def test_resource_usage_is_read_kernel_by_kernel():
    kernels = check_cuda.parse_usage(USAGE)
    assert [(k.name, k.arch, k.registers, k.local_bytes) for k in kernels] == [
        ("a", "80", 96, 0),
        ("b", "80", 255, 16),
        ("attention_fwd_kernel<MmaEngine<Float16>, 64, true>", "90a", 169, 0),
    ]


def test_local_memory_of_a_kernel_is_a_fault():
    good, bad, _ = check_cuda.parse_usage(USAGE)
    assert good.faults == []
    assert bad.faults == ["b sm_80: keeps 16 bytes in local memory"]


def test_registers_beyond_the_planned_occupancy_are_a_fault():
    *_, kernel = check_cuda.parse_usage(USAGE)
    assert replace(kernel, registers=168).faults == []
    (fault,) = kernel.faults
    assert fault.endswith("takes 169 registers, more than 168")


@pytest.mark.parametrize(
    ("symbol", "code", "faults"),
    [
        (FORWARD, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1}", 0),
        (FORWARD, "fma.rn.f32 %f1, %f2, %f3, %f4;", 1),
        (FORWARD.replace("20attention_fwd_kernel", "24attention_few_fwd_kernel"), "fma.rn.f32 %f1, %f2, %f3, %f4;", 0),
        ("_Z1av", "fma.rn.f32 %f1, %f2, %f3, %f4;", 0),
    ],
)
def test_missing_matrix_instructions_are_a_fault(symbol, code, faults):
    other = ".visible .entry _Z1bv()\n{ mma.sync.aligned }\n"
    ptx = f".target sm_80\n{other}.visible .entry {symbol}()\n{{ {code} }}\n{other}"
    assert len(check_cuda.missing_instructions(ptx)) == faults


def fake_cuobjdump(folder: Path, code: str) -> None:
    tool = folder / "cuobjdump"
    tool.parent.mkdir(parents=True, exist_ok=True)
    tool.write_text(f"#!/bin/sh\n{code}\n")
    tool.chmod(0o755)


def test_library_without_kernels_is_a_fault(tmp_path, monkeypatch, capsys):
    fake_cuobjdump(tmp_path, "echo \"File '$2' does not contain device code\" >&2; exit 255")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CROSSMODAL_CUDA", "0")
    assert check_cuda.main(["some.so"]) == 1
    assert "some.so: cuobjdump -res-usage: File 'some.so' does not contain device code" in capsys.readouterr().err


def test_cuobjdump_of_a_package_is_found(tmp_path, monkeypatch):
    fake_cuobjdump(tmp_path / "nvidia/cu13/bin", "")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert check_cuda.find_cuobjdump() == str(tmp_path / "nvidia/cu13/bin/cuobjdump")
