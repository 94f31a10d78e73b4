"""Products of float32 are rounded on a GPU where torch's setting allows it, in compiled graphs too."""

import pytest
import torch

from crossmodal.ops._precision import _matmul_is_tf32, allows_tf32

SETTINGS = {
    "by the name of old": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "by float32_matmul_precision": lambda: torch.set_float32_matmul_precision("high"),
    "of everything": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "of products": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
}


@pytest.fixture(autouse=True)
def restored():
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "none"


@pytest.mark.parametrize("name", SETTINGS)
def test_follows_torchs_setting(name):
    assert not _matmul_is_tf32()
    SETTINGS[name]()
    assert _matmul_is_tf32()


def test_is_about_float32_on_a_gpu_alone(dtype):
    torch.set_float32_matmul_precision("high")
    assert not allows_tf32(torch.zeros(1, dtype=dtype))
    with torch._subclasses.fake_tensor.FakeTensorMode():
        assert allows_tf32(torch.zeros(1, dtype=dtype, device="cuda")) == (dtype == torch.float32)


def test_a_compiled_graph_follows_the_setting():
    compiled = torch.compile(lambda x: x + 1 if _matmul_is_tf32() else x, backend="eager", fullgraph=True)
    for precision, wanted in (("highest", 0), ("high", 1), ("highest", 0)):
        torch.set_float32_matmul_precision(precision)
        assert compiled(torch.zeros(())) == wanted
