"""Builds the emulated kernels with g++: as they are, and once more with every injected bug."""

from __future__ import annotations

import fcntl
import importlib.util
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ninja import ninja_syntax

from tests.native.bugs.bug import Bug
from tests.native.mutants import with_bugs

ROOT = Path(__file__).resolve().parent.parent.parent
NATIVE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "emulator"
# One instance of each kernel is enough to have its bugs.
MUTANTS = (
    "cuda/associate/f16.cu",
    "cuda/attention_bwd/f16_64.cu",
    "cuda/attention_bwd/tf32_64.cu",
    "cuda/attention_bwd_short/f16_64.cu",
    "cuda/attention_few/f16.cu",
    "cuda/attention_fwd/f16_64.cu",
    "cuda/attention_fwd/f16_128.cu",
    "cuda/attention_fwd/tf32_64.cu",
    "cuda/merge_rows.cu",
    "cuda/order_tiles.cu",
    "cuda/weighted_sum.cu",
)

# half.h of the CPU serves the emulator too, under a name of its own.
FLAGS = "-std=c++17 -O1 -fPIC -fvisibility=hidden -Wall -Wno-unknown-pragmas -DCROSSMODAL_ISA=emulated"
# The emulator's headers come first: its cuda/ptx.h and cuda_runtime.h take the place of the real ones.
INCLUDES = (NATIVE / "emulator" / "include", NATIVE)


def build() -> tuple[Path, Path]:
    """The operators' library and the kernels' library, up to date."""
    with _alone():
        _write_ninja(BUILD / "build.ninja", ROOT / "csrc", cuda_sources(), with_operators=True)
        _ninja(BUILD / "build.ninja")
    return BUILD / "operators.so", BUILD / "kernels.so"


def build_mutants(bugs: Sequence[Bug]) -> Path:
    """Kernels that have all bugs, each in force when told; what has none comes from the build of all."""
    folder = BUILD / "mutants"
    csrc = folder / "csrc"
    sources = {csrc / "cuda" / file: text for file, text in with_bugs(ROOT / "csrc" / "cuda", bugs).items()}
    with _alone():
        for stale in {path for path in csrc.glob("**/*") if path.is_file()} - set(sources):
            stale.unlink()
        for path, text in sources.items():
            _write_if_changed(path, text)
        _write_ninja(folder / "build.ninja", csrc, MUTANTS, with_operators=False)
        _ninja(folder / "build.ninja")
    return folder / "kernels.so"


@contextmanager
def _alone() -> Iterator[None]:
    """Of several test processes one builds, and the others find it built."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go with the file
        yield


def cuda_sources() -> list[str]:
    """Kernels, and the plain C++ that chooses among them."""
    csrc = ROOT / "csrc"
    return sorted(str(path.relative_to(csrc)) for path in (*csrc.glob("cuda/**/*.cu"), *csrc.glob("cuda/*.cpp")))


def _stem(source: str) -> str:
    return source.replace("/", "_")


def _ninja(file: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "ninja", "-f", str(file)], cwd=file.parent, capture_output=True, text=True
    )
    if result.returncode != 0:
        raise RuntimeError(f"the emulated kernels do not compile:\n{result.stdout[-4000:]}")


def _write_ninja(file: Path, csrc: Path, kernels: Sequence[str], *, with_operators: bool) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as text:
        ninja = ninja_syntax.Writer(text)
        includes = " ".join(f"-I{folder}" for folder in (*INCLUDES, csrc, ROOT / "csrc"))
        ninja.rule("cxx", f"g++ -MD -MF $out.d {FLAGS} $flags {includes} -x c++ -c $in -o $out", depfile="$out.d")
        ninja.rule("link", "g++ -shared $in -o $out $flags -ldl")
        objects = []

        def compile_one(source: Path, name: str, flags: str = "") -> None:
            objects.append(str(file.parent / f"{name}.o"))
            ninja.build([objects[-1]], "cxx", [str(source)], variables={"flags": flags})

        for name in kernels:
            own = csrc / name
            compile_one(own if own.exists() else ROOT / "csrc" / name, _stem(name))
        emulator = [str(BUILD / f"{name}.o") for name in ("fiber", "machine", "entry_points")]
        shared = [str(BUILD / f"{_stem(name)}.o") for name in cuda_sources() if name not in kernels]
        if with_operators:
            for target in emulator:
                source = NATIVE / "emulator" / Path(target).with_suffix(".cpp").name
                ninja.build([target], "cxx", [str(source)])
        ninja.build([str(file.parent / "kernels.so")], "link", [*objects, *emulator, *shared])
        if not with_operators:
            return

        objects.clear()
        torch = _torch_folder()
        torch_flags = f"-DTORCH_TARGET_VERSION=0x020a000000000000 -isystem {torch / 'include'}"
        own = {"kernels.cpp", "kernels_cpu.cpp"}
        for source in sorted(path for path in (csrc / "torch").glob("*.cpp") if path.name not in own):
            compile_one(source, f"torch_{source.stem}", torch_flags)
        compile_one(NATIVE / "emulator" / "operators.cpp", "operators", torch_flags)
        schemas = file.parent / "ops.cpp"
        _write_if_changed(schemas, (csrc / "ops.cpp").read_text().replace("(crossmodal,", "(crossmodal_emulated,"))
        compile_one(schemas, "ops", torch_flags)
        ninja.build(
            [str(file.parent / "operators.so")],
            "link",
            objects,
            variables={"flags": f"-L{torch / 'lib'} -Wl,--no-as-needed -ltorch -ltorch_cpu"},
        )


def _write_if_changed(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])
