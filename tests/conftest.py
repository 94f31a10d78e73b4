"""Fixtures that every test file may use, and the devices that tests run on."""

import re
import shutil
from contextlib import nullcontext

import pytest
import torch

from crossmodal import _library
from tests.devices import NOT_ON_A_GPU, SUITE, GpuOperators, operators

USABLE_ISAS = [isa["name"] for isa in _library.cpu_isas() if isa["compiled"] and isa["supported"]]
HAS_GPU = torch.cuda.is_available() and _library.build_info()["cuda"] is not None


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


@pytest.fixture(scope="session")
def emulator():
    """The emulated GPU, built when first asked for."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    from tests.native.emulated import Emulator

    return Emulator()


@pytest.fixture
def emulated_once(emulator):
    """`crossmodal` on emulated CUDA kernels."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what nobody has written with NaN
    with operators(torch.ops.crossmodal_emulated):
        yield emulator
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def device(request):
    """Whose kernels run: see tests/devices.py and pytest_generate_tests."""
    name = getattr(request, "param", "cpu")
    if name == "emulated":
        request.getfixturevalue("emulated_once")
    with operators(GpuOperators(torch.ops.crossmodal)) if name == "cuda" else nullcontext():
        yield name


def pytest_addoption(parser):
    parser.addoption("--runs", type=int, help="draw this many fresh random problems in tests/test_random.py")
    parser.addoption("--runs-seed", type=int, help="which problems --runs draws; by default others each time")
    parser.addoption(
        "--device",
        choices=["cpu", "cuda", "emulated"],
        help="whose kernels tests of what the functions compute run; by default the CPU's, and a GPU's where one is",
    )


def pytest_generate_tests(metafunc):
    wanted = metafunc.config.getoption("--device")
    devices = [wanted] if wanted else ["cpu", "cuda"] if HAS_GPU else ["cpu"]
    if metafunc.module.__name__ not in SUITE or devices == ["cpu"]:
        return
    marks = {"cuda": [pytest.mark.cuda]}
    metafunc.parametrize("device", [pytest.param(d, marks=marks.get(d, [])) for d in devices], indirect=True)


def pytest_collection_modifyitems(config, items):
    """A GPU does not ask which instruction set the CPU has, and is not asked what it cannot show."""
    repeated = set()
    for item in items:
        drawn = item.callspec.params if hasattr(item, "callspec") else {}
        if drawn.get("device", "cpu") == "cpu":
            continue
        if drawn.get("isa", USABLE_ISAS[0]) != USABLE_ISAS[0]:
            repeated.add(item)
        for pattern, reason in NOT_ON_A_GPU.items():
            if re.search(pattern, item.nodeid):
                item.add_marker(pytest.mark.skip(reason=reason))
    if repeated:
        config.hook.pytest_deselected(items=list(repeated))
        items[:] = [item for item in items if item not in repeated]


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda"):
        if not torch.cuda.is_available():
            pytest.skip("needs an NVIDIA GPU")
        if _library.build_info()["cuda"] is None:
            pytest.skip("this build has no CUDA kernels")
