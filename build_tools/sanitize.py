"""Runs a command with an instrumented library in place of the installed one.

    python -m build_tools.sanitize address pytest -m memory

Builds into a folder of its own, on CPU only; what is installed stays as it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from build_tools.ninja_file import NinjaWriter
from build_tools.settings import ROOT, SANITIZERS, Settings, build_dir

# Python is not instrumented, hence the runtime has to be loaded before it. libstdc++ comes along
# since Python does not link it, and the runtime looks up its functions at the start.
PRELOADED = {
    "address": ("libasan.so", "libstdc++.so"),
    "undefined": ("libubsan.so", "libstdc++.so"),
    "thread": ("libtsan.so", "libstdc++.so"),
}


def environment(sanitizer: str, cxx: str, library: Path, report: Path) -> dict[str, str]:
    def file_of(name: str) -> str:
        return subprocess.check_output([cxx, f"-print-file-name={name}"], text=True).strip()

    # In a file, since pytest would swallow what a test prints before it ends the process.
    options = f"log_path={report}:abort_on_error=1:print_stacktrace=1"
    return {
        "LD_PRELOAD": " ".join(map(file_of, PRELOADED[sanitizer])),
        "CROSSMODAL_LIBRARY": str(library),
        # Much of its memory Python frees never, which is no leak of ours.
        "ASAN_OPTIONS": f"{options}:detect_leaks=0",
        "UBSAN_OPTIONS": options,
        "TSAN_OPTIONS": options,
    }


def main(arguments: list[str]) -> int:
    if len(arguments) < 2 or arguments[0] not in SANITIZERS:
        print(f"usage: python -m build_tools.sanitize {{{','.join(SANITIZERS)}}} command ...")
        return 2
    sanitizer, *command = arguments
    settings = replace(Settings.from_environment(), sanitizer=sanitizer, cuda=None)
    folder = build_dir(sanitizer)
    build = NinjaWriter(settings, f"0+{sanitizer}", ROOT, folder).write()
    build.run(str(build.library))
    for old in (ROOT / folder).glob("report.*"):
        old.unlink()
    extra = environment(sanitizer, settings.cxx, ROOT / build.library, ROOT / folder / "report")
    status = subprocess.call(command, env={**os.environ, **extra})
    for report in (ROOT / folder).glob("report.*"):  # one per process that had a finding
        print(report.read_text(), file=sys.stderr)
        status = status or 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
