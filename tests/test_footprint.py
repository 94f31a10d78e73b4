"""Memory: nothing grows with calls, nothing grows with seqlen_q x seqlen_k. Each measured in a process of its own."""

import subprocess
import sys

import pytest

COMMON = """
import resource, torch, crossmodal
from crossmodal import Source
torch.set_num_threads(2)
def rss_mib():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
"""


def printed_by(script: str) -> float:
    done = subprocess.run([sys.executable, "-c", COMMON + script], capture_output=True, text=True, check=True)
    return float(done.stdout.strip())


@pytest.mark.slow
def test_10000_calls_leave_no_memory_behind():
    growth = printed_by("""
q, k = torch.randn(2, 2, 9, 16, requires_grad=True), torch.randn(2, 2, 21, 16, requires_grad=True)
bias, lengths = torch.randn(1, 2, 9, 21, requires_grad=True), torch.tensor([3, 21])
def call(i):
    with torch.no_grad():
        crossmodal.attention(q, k, k, key_lengths=lengths)
        crossmodal.associate(q, k, topk=2)
    result = crossmodal.fuse(q, [Source(k, k, lengths, bias=bias), Source(k, k)], return_mass=True)
    (result.out.sum() + result.mass[..., 0].sum()).backward()
    q.grad = k.grad = bias.grad = None
    try:
        crossmodal.attention(q, k, k, key_lengths=lengths + 99)
    except ValueError:
        pass
for i in range(500): call(i)
before = rss_mib()
for i in range(10_000): call(i)
print(rss_mib() - before)
""")
    assert growth < 8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_long_sequences_need_no_score_matrix(dtype):
    """At 1 x 1 x 8192 x 8192 the scores alone would take 256 MiB."""
    growth = printed_by(f"""
q, k, v = (torch.randn(1, 1, 8192, 64).to(torch.{dtype}).requires_grad_() for _ in range(3))
small = [t.detach()[:, :, :64].requires_grad_() for t in (q, k, v)]
crossmodal.attention(*small).sum().backward()
before = peak_mib()
crossmodal.attention(q, k, v).sum().backward()
print(peak_mib() - before)
""")
    assert growth < 64


def test_head_mean_needs_no_weights_per_head():
    """16 heads of 2048 x 2048 weights would take 256 MiB; their mean takes 16."""
    growth = printed_by("""
q, k = torch.randn(1, 16, 2048, 16), torch.randn(1, 16, 2048, 16)
crossmodal.associate(q[:, :, :8], k[:, :, :8], reduce="heads")
before = peak_mib()
crossmodal.associate(q, k, reduce="heads")
print(peak_mib() - before)
""")
    assert growth < 64
