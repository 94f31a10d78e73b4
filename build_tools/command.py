"""setuptools' build_ext, which hands the work to ninja."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.errors import ExecError, PlatformError

from build_tools.ninja_file import NinjaBuild, NinjaWriter
from build_tools.settings import ROOT, BuildError, Settings, build_dir

LIBRARY = "crossmodal.libcrossmodal"
NATIVE = "crossmodal._native"


class NinjaBuildExt(build_ext):
    def build_extensions(self) -> None:
        try:
            settings = Settings.from_environment()
        except BuildError as error:
            raise PlatformError(str(error)) from None
        build = self._run_ninja(settings)
        _replace(ROOT / build.library, Path(self.get_ext_fullpath(LIBRARY)))
        _replace(ROOT / build.native, Path(self.get_ext_fullpath(NATIVE)))

    def get_ext_filename(self, fullname: str) -> str:
        # Not a Python module: the library has no Python in it, and so no Python ABI in its name.
        if fullname.endswith("libcrossmodal"):
            return fullname.replace(".", os.sep) + ".so"
        return super().get_ext_filename(fullname)

    def _run_ninja(self, settings: Settings) -> NinjaBuild:
        folder = build_dir(settings.sanitizer)
        jobs = os.environ.get("MAX_JOBS")
        with _locked(ROOT / folder):
            version = self.distribution.get_version()
            build = NinjaWriter(settings, version, ROOT, folder).write()
            try:
                build.run(*(("-j", jobs) if jobs else ()), *(("-v",) if self.verbose > 1 else ()))
            except subprocess.CalledProcessError:
                raise ExecError("the compiled parts were not built, see above") from None
        return build


def extensions() -> list[Extension]:
    """Names only: ninja_file.py finds the sources."""
    return [Extension(LIBRARY, []), Extension(NATIVE, [])]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One build at a time: ninja does not guard its folder against a second one."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _replace(source: Path, target: Path) -> None:
    """Copies by rename: overwriting a library in place would crash the processes that use it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".new")
    shutil.copy2(source, temporary)
    temporary.replace(target)
