"""Fixtures of the emulated GPU."""

import shutil

import pytest
import torch

from tests.native.emulated import MODES, Emulator, in_place_of_the_cpu


@pytest.fixture(scope="session")
def emulator():
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return Emulator()


@pytest.fixture
def emulated_once(emulator):
    """`crossmodal` on emulated CUDA kernels."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what nobody has written with NaN
    with in_place_of_the_cpu():
        yield emulator
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


@pytest.fixture(params=MODES, ids=lambda mode: "-".join(part.name.lower() for part in mode))
def emulated(request, emulated_once):
    """The same, once for each order in which threads run and copies land."""
    emulated_once.set_mode(*request.param)
    return emulated_once
