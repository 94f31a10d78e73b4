"""Where and with what a number was measured."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import crossmodal
from crossmodal.info import collect_info


def describe_machine(threads: int) -> dict[str, Any]:
    """Plain data: CPU, instruction set, threads, versions, commit."""
    info = collect_info()
    return {
        "cpu": info["cpu"]["model"],
        "cores": info["cpu"]["cores"],
        "threads": threads,
        "isa": info["active_isa"],
        "platform": info["platform"],
        "python": info["python"],
        "torch": torch.__version__,
        "crossmodal": info["version"],
        "compiler": info["compiler"],
        "commit": commit(),
        "load": os.getloadavg()[0],  # what others were doing on this machine
    }


def commit() -> str:
    """The commit of the checkout that runs, with ``+`` when files were changed since; empty outside of a checkout."""
    folder = Path(crossmodal.__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        # An installed package may lie inside some other project's checkout.
        if not git("ls-files", "__init__.py"):
            return ""
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD").strip() + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def slug(machine: dict[str, Any]) -> str:
    """A short name of the device, for file names: ``"amd-epyc-avx512_bf16-1-thread"``."""
    threads = machine["threads"]
    words = f"{machine['cpu']} {machine['isa']} {threads} thread{'s' * (threads > 1)}"
    words = re.sub(r"\((r|tm)\)|processor|cpu|@.*ghz", " ", words.lower())
    return re.sub(r"[^a-z0-9_]+", "-", words).strip("-")
