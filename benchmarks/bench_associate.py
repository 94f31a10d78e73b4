"""`associate` for pytest-benchmark; as a module it prints the table of `crossmodal bench`."""

import sys
from typing import Any

from crossmodal.cli import main


def test_associate(measured: Any) -> None:
    measured.hand_over()


if __name__ == "__main__":
    sys.exit(main(["bench", "--op", "associate", *sys.argv[1:]]))
