"""crossmodal's functions on emulated CUDA kernels: the same Python, the same binding of tensors, another device."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

import pytest
import torch

from crossmodal.ops import _fusion, _plain
from tests.native.build import build


class Schedule(IntEnum):
    """Of warps and of blocks."""

    FIRST_FIRST = 0
    LAST_FIRST = 1
    RANDOM = 2


class Copies(IntEnum):
    EARLY = 0
    LATE = 1
    RANDOM = 2


# Each is the worst case of some mistake: a barrier left out, a wait too short, a stage reused too soon, a row that
# another block has written already.
MODES = (
    (Schedule.FIRST_FIRST, Copies.EARLY),
    (Schedule.LAST_FIRST, Copies.LATE),
    (Schedule.RANDOM, Copies.RANDOM),
)


@contextmanager
def tf32_allowed() -> Iterator[None]:
    """Within it, products of float32 may round their factors. torch's setting is about a GPU's tensors, and these lie
    in the CPU's memory."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (_fusion, _plain):
            patch.setattr(module, "allows_tf32", lambda operand: operand.dtype == torch.float32)
        yield


class Emulator:
    """The operators' library, which is loaded once, and the kernels' library that it runs."""

    def __init__(self) -> None:
        operators, self._kernels = build()
        torch.ops.load_library(str(operators))
        self._library = ctypes.CDLL(str(operators))
        self._library.emulator_load.restype = ctypes.c_char_p
        self._library.emulator_load.argtypes = [ctypes.c_char_p]
        self._library.emulator_set_mode.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_uint64]
        self._library.emulator_set_bug.argtypes = [ctypes.c_int]
        self.load(self._kernels)

    def load(self, kernels: Path) -> None:
        wrong = self._library.emulator_load(str(kernels).encode())
        if wrong:
            raise RuntimeError(wrong.decode())

    def set_mode(self, schedule: Schedule, copies: Copies, seed: int = 1) -> None:
        self._library.emulator_set_mode(schedule, copies, seed)

    @contextmanager
    def refusing_after(self, launches: int) -> Iterator[None]:
        """Within it, the device takes so many launches and no more."""
        self._library.emulator_refuse_after(launches)
        try:
            yield
        finally:
            self._library.emulator_refuse_after(-1)

    def set_bug(self, number: int) -> None:
        """Of the kernels that are loaded: one of those that they were built with."""
        self._library.emulator_set_bug(number)
