"""Data-parallel training in two processes on this machine: the gradients of one process with the whole batch."""

import subprocess
import sys

import pytest

SCRIPT = """
import datetime, os, sys
import torch
import torch.distributed as dist
import crossmodal
from crossmodal import Source

class Fusion(torch.nn.Module):
    '''A query and two modalities, one of them absent for some samples.'''
    def __init__(self):
        super().__init__()
        self.project = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))
        self.sink = torch.nn.Parameter(torch.zeros(2))
    def forward(self, q, a, b, lengths):
        q, a, b = (p(t).unflatten(-1, (2, 4)).transpose(1, 2) for p, t in zip(self.project, (q, a, b)))
        result = crossmodal.fuse(q, [Source(a, a), Source(b, b, lengths)], sink=self.sink, return_mass=True)
        return result.out.square().mean() + result.mass.square().mean()

class Modules(torch.nn.Module):
    '''Our modules, and a layer of torch that was converted.'''
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.block = crossmodal.nn.CrossModalBlock(8, 2, {"a": 8, "b": 8}, gate=1.0)
        self.pool = crossmodal.nn.AttentionPool(8, 2)
        assert crossmodal.convert(self).changed == ["layer.self_attn"]
    def forward(self, q, a, b, lengths):
        out = self.block(self.layer(q), {"a": a, "b": b}, {"b": lengths}).out
        return self.pool(out).square().mean() + out.square().mean()

def gradients(make, wrap, batch):
    torch.manual_seed(0)
    model = make()
    wrapped = wrap(model)
    wrapped(*batch).backward()
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        found[name] = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    return found

def ddp(model):
    return torch.nn.parallel.DistributedDataParallel(model)

def fsdp(model):
    from torch.distributed.fsdp import fully_shard
    return fully_shard(model)

torch.set_num_threads(1)
rank, store = int(sys.argv[1]), sys.argv[2]
# Loopback alone: what else the machine is connected to does not matter.
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
dist.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
)
generator = torch.Generator().manual_seed(1)
whole = [torch.randn(4, n, 8, generator=generator) for n in (5, 7, 3)] + [torch.tensor([3, 0, 1, 0])]
for make in (Fusion, Modules):
    wanted = gradients(make, lambda model: model, whole)
    for wrap in (ddp, fsdp):
        got = gradients(make, wrap, [t[2 * rank : 2 * rank + 2] for t in whole])
        assert got.keys() == wanted.keys() and len(got) >= 7
        for name in wanted:
            case = f"{wrap.__name__}, {make.__name__}, {name}: "
            torch.testing.assert_close(got[name], wanted[name], msg=lambda text: case + text)
print("all compared")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_find_the_gradients_of_one(tmp_path):
    """DDP and FSDP2, of the operator and of modules; in one pair of processes, which are slow to start."""
    command, pipe = [sys.executable, "-c", SCRIPT], subprocess.PIPE
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=pipe, stderr=pipe, text=True)
        for rank in range(2)
    ]
    try:
        printed = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors for _, errors in printed)
    assert all("all compared" in output for output, _ in printed)
