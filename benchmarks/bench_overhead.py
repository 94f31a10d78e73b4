"""The cost of a call for pytest-benchmark; as a module it prints the table of `crossmodal bench`."""

import sys
from typing import Any

from crossmodal.cli import main


def test_overhead(measured: Any) -> None:
    measured.hand_over()


if __name__ == "__main__":
    sys.exit(main(["bench", "--op", "overhead", *sys.argv[1:]]))
