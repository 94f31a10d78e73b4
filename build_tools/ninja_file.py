"""Writes build.ninja. Every source is found by its folder, so nobody edits a list of files.

csrc/ops.cpp, csrc/torch/*.cpp   see torch's headers; torch/*_cuda.cpp in CUDA builds only
csrc/core/*.cpp, csrc/cpu/*.cpp  plain C++
csrc/cuda/*.cpp                  plain C++ that knows the CUDA kernels, in CPU builds too
csrc/cpu/isa/<name>.cpp          plain C++ with the flags of that instruction set
csrc/cuda/**/*.cu                nvcc
csrc/introspection.cpp           pybind11, the module `_native`
"""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pybind11
from ninja import ninja_syntax

from build_tools import flags
from build_tools.settings import Settings


@dataclass(frozen=True)
class NinjaBuild:
    """A written build.ninja and what it makes. Paths are relative to root."""

    root: Path
    file: Path
    library: Path
    native: Path

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "ninja", "-f", str(self.file), *arguments]

    def run(self, *arguments: str) -> None:
        # From the root, so that __FILE__ in error texts is csrc/... on every machine.
        subprocess.run(self.command(*arguments), cwd=self.root, check=True)


@dataclass
class NinjaWriter:
    settings: Settings
    version: str
    root: Path
    build_dir: Path  # relative to root
    objects: list[str] = field(default_factory=list)
    isa_checks: list[str] = field(default_factory=list)

    def write(self) -> NinjaBuild:
        text = io.StringIO()
        self.ninja = ninja_syntax.Writer(cast(Any, text))  # which its stub calls a str
        self.ninja.variable("builddir", str(self.build_dir))  # where ninja keeps its own log
        self._rules()
        self._torch_sources()
        self._plain_sources()
        self._isa_sources()
        self._cuda_sources()
        library = self._library()
        native = self._native(library)
        file = self.build_dir / "build.ninja"
        (self.root / file).parent.mkdir(parents=True, exist_ok=True)
        (self.root / file).write_text(text.getvalue())
        return NinjaBuild(self.root, file, Path(library), Path(native))

    def _rules(self) -> None:
        cxx = shlex.quote(self.settings.cxx)
        check = shlex.join([sys.executable, str(Path(__file__).with_name("check_weak_symbols.py"))])
        self._rule("cxx", f"{cxx} -MD -MF $out.d $flags -c $in -o $out", has_depfile=True)
        self._rule("link", f"{cxx} $in -o $out $flags")
        self._rule("stub", f"{cxx} $flags -x c /dev/null -o $out")
        self._rule("check", f"{check} $in && touch $out")
        if cuda := self.settings.cuda:
            nvcc = shlex.quote(cuda.nvcc)
            self._rule("nvcc", f"{nvcc} -MD -MF $out.d $flags -c $in -o $out", has_depfile=True)

    def _rule(self, name: str, command: str, has_depfile: bool = False) -> None:
        self.ninja.rule(
            name,
            command,
            description=f"{name.upper()} $out",
            depfile="$out.d" if has_depfile else None,
            deps="gcc" if has_depfile else None,
        )

    # -- sources -------------------------------------------------------------------------------

    def _torch_sources(self) -> None:
        include = shlex.quote(str(self.settings.torch_include))
        torch_flags = [flags.TORCH_TARGET_FLAG, f"-isystem {include}"]
        # torch's checks put __FILE__ into error texts; a user has no use for our folders.
        torch_flags.append(f"-ffile-prefix-map={include}=torch/include")
        if self.settings.cuda:
            torch_flags.append("-DCROSSMODAL_WITH_CUDA")
        for source in ["csrc/ops.cpp", *self._glob("csrc/torch/*.cpp")]:
            if self.settings.cuda or not source.endswith("_cuda.cpp"):
                self._compile(source, torch_flags)

    def _plain_sources(self) -> None:
        for source in [*self._glob("csrc/core/*.cpp"), *self._glob("csrc/cuda/*.cpp")]:
            self._compile(source, self._build_info() if source.endswith("/build_info.cpp") else [])
        isa_defines = [f"-DCROSSMODAL_ISA_{name.upper()}" for name in self._isas()]
        for source in self._glob("csrc/cpu/*.cpp"):
            self._compile(source, [*flags.KERNEL_FLAGS, *isa_defines])

    def _isa_sources(self) -> None:
        for name in self._isas():
            # No C++ exceptions: their tables refer to weak symbols.
            isa_flags = [*flags.KERNEL_FLAGS, *flags.ISA_FLAGS[name], "-fno-exceptions"]
            target = self._compile(f"csrc/cpu/isa/{name}.cpp", isa_flags)
            check = f"{target}.checked"
            self._edge(check, "check", [target])
            self.isa_checks.append(check)

    def _cuda_sources(self) -> None:
        if cuda := self.settings.cuda:
            host = ["-ccbin", shlex.quote(self.settings.cxx), *flags.NVCC_HOST_FLAGS]
            nvcc_flags = [*flags.NVCC_FLAGS, *host, *map(shlex.quote, flags.gencode_flags(cuda))]
            for source in self._glob("csrc/cuda/**/*.cu"):
                self._edge(self._object(source), "nvcc", [source], nvcc_flags)

    def _isas(self) -> list[str]:
        is_x86 = self.settings.machine in flags.X86_MACHINES
        names = flags.ISA_FLAGS if is_x86 else ("portable",)
        return [name for name in names if (self.root / f"csrc/cpu/isa/{name}.cpp").exists()]

    def _build_info(self) -> list[str]:
        cuda = self.settings.cuda
        info = {
            "version": self.version,
            "compiler": self.settings.compiler,
            "torch_target": flags.TORCH_TARGET,
            "sanitizer": self.settings.sanitizer,
            "cuda": cuda and {"version": cuda.version, "archs": list(cuda.archs)},
        }
        # A JSON text, dumped once more, is a C string literal.
        return ["-DCROSSMODAL_BUILD_JSON=" + shlex.quote(json.dumps(json.dumps(info)))]

    # -- products ------------------------------------------------------------------------------

    def _library(self) -> str:
        # The library must name torch's libraries as needed, yet no torch of a certain version is
        # wanted at link time: empty libraries of the same SONAME stand in for them.
        stubs = []
        for soname in ("libtorch.so", "libtorch_cpu.so"):
            stubs.append(str(self.build_dir / "stubs" / soname))
            self._edge(stubs[-1], "stub", [], ["-shared", "-nostdlib", f"-Wl,-soname,{soname}"])
        link = [*flags.LIBRARY_FLAGS, *flags.sanitizer_flags(self.settings.sanitizer)]
        link += ["-Wl,--no-as-needed", *stubs, "-Wl,--as-needed"]
        if cuda := self.settings.cuda:
            link += [f"-L{shlex.quote(str(cuda.library_dir))}", "-lcudart_static"]
            link += ["-lpthread", "-ldl", "-lrt"]
        library = str(self.build_dir / "libcrossmodal.so")
        implicit = [*stubs, *self.isa_checks, "csrc/exports.map"]
        self._edge(library, "link", self.objects, link, implicit)
        return library

    def _native(self, library: str) -> str:
        # A folder per Python, so that two of them can share a checkout.
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        folder = self.build_dir / "native" / suffix.strip(".").removesuffix(".so")
        includes = [pybind11.get_include(), sysconfig.get_path("include")]
        include_flags = [f"-isystem {shlex.quote(include)}" for include in includes]
        target = str(folder / "introspection.cpp.o")
        sanitizer = flags.sanitizer_flags(self.settings.sanitizer)
        compile_flags = [*flags.CXX_FLAGS, *sanitizer, *include_flags]
        self._edge(target, "cxx", ["csrc/introspection.cpp"], compile_flags)
        module = str(folder / f"_native{suffix}")
        link = ["-shared", "-Wl,-rpath,'$$ORIGIN'", *sanitizer]
        self._edge(module, "link", [target, library], link)
        return module

    # -- helpers -------------------------------------------------------------------------------

    def _glob(self, pattern: str) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.root.glob(pattern))

    def _object(self, source: str) -> str:
        target = str(self.build_dir / Path(source).relative_to("csrc")) + ".o"
        self.objects.append(target)
        return target

    def _compile(self, source: str, extra: list[str]) -> str:
        target = self._object(source)
        common = [*flags.CXX_FLAGS, *flags.sanitizer_flags(self.settings.sanitizer)]
        self._edge(target, "cxx", [source], [*common, *extra])
        return target

    def _edge(
        self,
        target: str,
        rule: str,
        sources: list[str],
        edge_flags: Sequence[str] = (),
        implicit: list[str] | None = None,
    ) -> None:
        variables = {"flags": " ".join(edge_flags)}
        self.ninja.build([target], rule, sources, implicit=implicit, variables=variables)
