"""A package of AOTInductor with our operators and modules runs in a C++ program that knows no Python."""

import io
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import crossmodal
from crossmodal import Source

HERE = Path(__file__).resolve().parent
TORCH = Path(torch.__file__).resolve().parent


class Model(torch.nn.Module):
    """Every operator that inference needs, within modules."""

    def __init__(self):
        super().__init__()
        self.attention = crossmodal.nn.MultiheadAttention(16, 2, batch_first=True)
        self.block = crossmodal.nn.CrossModalBlock(16, 2, {"image": 16}, gate=1.0)

    def forward(self, text, image, lengths):
        out, weights = self.attention(text, image, image)
        block = self.block(out, {"image": image}, {"image": lengths}, return_mass=True)
        q, k = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (text, image))
        fused = crossmodal.fuse(q, [Source(k, k, lengths), Source(q, q)], return_lse=True)
        return block.out, block.mass, weights, fused.out, fused.lse


def compiled_program(folder):
    """tests/native/run_package.cpp, built against the torch that is installed."""
    program = folder / "run_package"
    flags = [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}", "-std=c++17", "-O0"]
    include = [f"-I{TORCH / 'include'}", f"-I{TORCH / 'include/torch/csrc/api/include'}"]
    link = [
        "-Wl,--no-as-needed",
        f"-L{TORCH / 'lib'}",
        f"-Wl,-rpath,{TORCH / 'lib'}",
        "-ltorch",
        "-ltorch_cpu",
        "-lc10",
        "-ldl",
    ]
    source = HERE / "native" / "run_package.cpp"
    done = subprocess.run(
        ["g++", *flags, *include, str(source), "-o", str(program), *link], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return program


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_program_without_python_gives_what_eager_gives(tmp_path):
    model = Model().eval()
    inputs = (torch.randn(3, 5, 16), torch.randn(3, 7, 16), torch.tensor([7, 0, 2]))
    with torch.no_grad():
        wanted = model(*inputs)
        batch = torch.export.Dim("batch", min=2, max=64)
        exported = torch.export.export(model, inputs, dynamic_shapes=({0: batch},) * 3)
    package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "model.pt2"))
    others = tuple(torch.cat([t, t.flip(0)]) for t in inputs)  # another batch than the example's
    with torch.no_grad():
        wanted = model(*others)
    (tmp_path / "inputs.pt").write_bytes(pickled(others))
    library = Path(crossmodal.__file__).resolve().parent / "libcrossmodal.so"
    arguments = [str(library), package, str(tmp_path / "inputs.pt"), str(tmp_path / "outputs.pt")]
    done = subprocess.run([compiled_program(tmp_path), *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout == "5 outputs\n", done.stderr
    got = torch.load(io.BytesIO((tmp_path / "outputs.pt").read_bytes()), weights_only=False)
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w)


def pickled(tensors):
    """In the form that torch::jit::pickle_load reads."""
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()
