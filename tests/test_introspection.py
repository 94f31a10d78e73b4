"""What the library tells about itself, through `_native` and through ctypes."""

import ast
import inspect
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

import crossmodal
from crossmodal import _introspection, _library

ROOT = Path(__file__).resolve().parent.parent
PYI = Path(crossmodal.__file__).with_name("_native.pyi")
PLAN_ARGUMENTS = ("float32", 2, 4, 33, 65, 16)


def native() -> ModuleType:
    return pytest.importorskip("crossmodal._native", reason="built for another Python")


def stub_functions() -> dict[str, ast.FunctionDef]:
    body = ast.parse(PYI.read_text()).body
    return {node.name: node for node in body if isinstance(node, ast.FunctionDef)}


def public_names(module: ModuleType) -> set[str]:
    """Functions that the module defines itself."""
    return {
        name for name, value in vars(module).items() if callable(value) and not name.startswith("_") and name != "Any"
    }


def test_stub_lists_exactly_the_functions_of_native():
    assert set(stub_functions()) == public_names(native())


def test_ctypes_twin_has_exactly_the_functions_of_the_stub():
    assert set(stub_functions()) == public_names(_introspection)


@pytest.mark.parametrize("name", stub_functions())
def test_ctypes_twin_has_the_signature_of_the_stub(name):
    stub = [argument.arg for argument in stub_functions()[name].args.args]
    assert list(inspect.signature(getattr(_introspection, name)).parameters) == stub


@pytest.mark.parametrize("name", stub_functions())
def test_native_has_the_argument_names_of_the_stub(name):
    stub = [argument.arg for argument in stub_functions()[name].args.args]
    signature = getattr(native(), name).__doc__.splitlines()[0]
    assert all(f"{argument}:" in signature for argument in stub)
    assert signature.count(":") == len(stub)


@pytest.mark.parametrize("name", ["build_info", "cpu_isas", "active_isa", "isa_environment_error"])
def test_native_and_ctypes_say_the_same(name):
    assert getattr(native(), name)() == getattr(_introspection, name)()


def test_native_and_ctypes_plan_the_same():
    assert native().attention_plan(*PLAN_ARGUMENTS) == _introspection.attention_plan(*PLAN_ARGUMENTS)


def test_plan_is_that_of_the_active_instruction_set(isa):
    assert _library.attention_plan(*PLAN_ARGUMENTS)["kernel"] == isa


@pytest.mark.parametrize("twin", ["_native", "_introspection"])
def test_unknown_dtype_is_a_value_error_that_lists_the_known_ones(twin):
    module = native() if twin == "_native" else _introspection
    expected = "dtype must be one of float32, bfloat16, float16, float64, got 'int8'"
    with pytest.raises(ValueError) as error:
        module.attention_plan("int8", *PLAN_ARGUMENTS[1:])
    assert str(error.value) == expected


@pytest.mark.parametrize("twin", ["_native", "_introspection"])
def test_measured_peaks_are_those_of_a_computer(twin):
    """Between one operation a nanosecond and what no core of today does: a loop that was optimized away shows."""
    module = native() if twin == "_native" else _introspection
    assert 0.1 < module.measure_peak("float32") < 1e4
    assert 0.1 < module.measure_bandwidth(16_384) < 1e4


def test_every_instruction_set_can_measure_every_dtype(isa, dtype):
    assert _library.measure_peak(str(dtype).removeprefix("torch.")) > 0.1


@pytest.mark.parametrize("twin", ["_native", "_introspection"])
def test_bandwidth_of_nothing_is_a_value_error(twin):
    module = native() if twin == "_native" else _introspection
    with pytest.raises(ValueError) as error:
        module.measure_bandwidth(0)
    assert str(error.value) == "num_bytes must be positive, got 0"


@pytest.mark.parametrize("twin", ["_native", "_introspection"])
def test_peak_of_an_unknown_dtype_is_a_value_error(twin):
    module = native() if twin == "_native" else _introspection
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, float64, got 'int8'"):
        module.measure_peak("int8")


def test_build_info_survives_json():
    info = crossmodal.build_info()
    assert json.loads(json.dumps(info)) == info


def test_build_info_names_the_torch_that_runs_and_the_one_it_was_built_for():
    info = crossmodal.build_info()
    assert info["torch"] == torch.__version__
    assert info["torch_target"] == "2.10"


def test_build_info_has_the_version_of_the_package():
    if crossmodal.build_info()["sanitizer"]:
        pytest.skip("an instrumented library carries no version")
    project = (ROOT / "pyproject.toml").read_text()
    assert f'\nversion = "{crossmodal.build_info()["version"]}"\n' in project


def test_build_info_says_which_cuda_is_in_it():
    cuda = crossmodal.build_info()["cuda"]
    assert cuda is None or (cuda["version"] and cuda["archs"])
