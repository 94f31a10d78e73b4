"""Fixtures that every test file may use."""

import pytest
import torch

from crossmodal import _library

USABLE_ISAS = [isa["name"] for isa in _library.cpu_isas() if isa["compiled"] and isa["supported"]]


@pytest.fixture(autouse=True)
def _seed():
    """The same random numbers in every run: a red test is the change's fault, never chance's."""
    torch.manual_seed(0)


@pytest.fixture(params=USABLE_ISAS)
def isa(request):
    """Runs the test once for each instruction set of this machine."""
    before = _library.active_isa()
    _library.select_isa(request.param)
    yield request.param
    _library.select_isa(before)


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=lambda dtype: str(dtype)[6:])
def dtype(request):
    """Runs the test once for each dtype that has kernels."""
    return request.param


def pytest_addoption(parser):
    parser.addoption("--runs", type=int, help="draw this many fresh random problems in tests/test_random.py")
    parser.addoption("--runs-seed", type=int, help="which problems --runs draws; by default others each time")


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda"):
        if not torch.cuda.is_available():
            pytest.skip("needs an NVIDIA GPU")
        if _library.build_info()["cuda"] is None:
            pytest.skip("this build has no CUDA kernels")
