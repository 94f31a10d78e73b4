"""Fails when an object file defines weak symbols: python check_weak_symbols.py FILE.o ...

The linker keeps one copy of a weak symbol, from whichever object it likes. In an object that was
compiled for AVX-512 that is one copy too many: every CPU would get it. The cure is an unnamed
namespace around the code.
"""

from __future__ import annotations

import subprocess
import sys


def weak_symbols(object_file: str) -> list[str]:
    # -C last column may hold spaces: "0000000000000000 W std::max<float>(...)".
    listing = subprocess.check_output(["nm", "-C", "--defined-only", object_file], text=True)
    rows = (line.split(maxsplit=2) for line in listing.splitlines())
    return [row[2] for row in rows if len(row) == 3 and row[1] in "WVu"]


def main(object_files: list[str]) -> int:
    failed = False
    for object_file in object_files:
        for symbol in weak_symbols(object_file):
            failed = True
            print(f"{object_file}: weak symbol {symbol}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
