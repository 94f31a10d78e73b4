"""The compiled library: what it exports, what it needs, and that it is loaded once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import crossmodal
from crossmodal import _library

PACKAGE = Path(crossmodal.__file__).parent
LIBRARY = _library.path


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def output_of(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def copied_library(tmp_path):
    """The library under its own name in another folder."""
    copy = tmp_path / _library.NAME
    copy.write_bytes(LIBRARY.read_bytes())
    return copy


def test_only_our_own_functions_are_exported():
    table = output_of("nm", "-D", "--defined-only", str(LIBRARY))
    names = [line.split()[-1] for line in table.splitlines()]
    assert names and all(name.startswith("crossmodal_") for name in names)


def test_no_python_symbol_is_needed():
    needed = output_of("nm", "-D", "--undefined-only", str(LIBRARY)).split()
    assert not [name for name in needed if name.startswith(("Py", "_Py"))]


def test_torch_is_named_as_needed_and_its_python_part_is_not():
    dynamic = output_of("readelf", "-d", str(LIBRARY))
    needed = [line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line]
    assert "libtorch.so" in needed
    assert not [name for name in needed if "python" in name or "cuda" in name]


def test_no_path_of_the_building_machine_is_in_the_library():
    # Sources are named from the root of the checkout in error texts, torch's headers from torch/.
    content = LIBRARY.read_bytes()
    if crossmodal.build_info()["sanitizer"]:
        pytest.skip("debug information names the sources")
    assert str(PACKAGE.parent).encode() not in content
    assert b"/site-packages/" not in content


def test_loading_from_a_second_path_is_an_import_error_that_names_both(copied_library):
    code = f"import torch; torch.ops.load_library({str(copied_library)!r})\nimport crossmodal._library"
    result = run_python(code)
    assert result.returncode == 1  # an exception, not an abort
    message = result.stderr.splitlines()[-1]
    assert message.startswith("ImportError: crossmodal's library is already loaded from")
    assert str(copied_library) in message and str(LIBRARY) in message


def test_library_that_is_loaded_from_the_same_path_is_taken_as_it_is():
    code = (
        f"import torch; torch.ops.load_library({str(LIBRARY)!r})\n"
        "from crossmodal import _library; print(_library.active_isa())"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_environment_names_another_library(copied_library):
    code = "import crossmodal; print(crossmodal.build_info()['library'])"
    result = run_python(code, CROSSMODAL_LIBRARY=str(copied_library))
    assert result.stdout.strip() == str(copied_library), result.stderr


def test_missing_library_is_an_import_error_that_says_how_to_build(tmp_path):
    result = run_python("import crossmodal", CROSSMODAL_LIBRARY=str(tmp_path / _library.NAME))
    message = result.stderr.splitlines()[-1]
    assert message.startswith("ImportError: crossmodal's compiled library is not at")
    assert "pip install ." in message


def test_import_works_without_native():
    code = (
        "import sys; sys.modules['crossmodal._native'] = None\n"
        "import crossmodal; print(crossmodal.build_info()['introspection'])"
    )
    result = run_python(code)
    assert result.stdout.strip() == "crossmodal._introspection", result.stderr


def test_import_works_where_no_gpu_is_visible():
    code = "import crossmodal; print(crossmodal.build_info()['gpu_count'])"
    result = run_python(code, CUDA_VISIBLE_DEVICES="")
    assert result.stdout.strip() == "0", result.stderr
