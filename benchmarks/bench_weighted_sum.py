"""Both weighted sums for pytest-benchmark; as a module it prints the table of `crossmodal bench`."""

import sys
from typing import Any

from crossmodal.cli import main


def test_weighted_sum(measured: Any) -> None:
    measured.hand_over()


def test_softmax_weighted_sum(measured: Any) -> None:
    measured.hand_over()


if __name__ == "__main__":
    sys.exit(main(["bench", "--op", "weighted_sum", "softmax_weighted_sum", *sys.argv[1:]]))
