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


@pytest.mark.slow
def test_10000_calls_of_the_other_functions_leave_no_memory_behind():
    growth = printed_by("""
q, k = torch.randn(2, 2, 9, 16, requires_grad=True), torch.randn(2, 2, 21, 16, requires_grad=True)
x, sink = torch.randn(18, 2, 16, requires_grad=True), torch.randn(2, requires_grad=True)
scores, ends = torch.randn(2, 2, 9, 21, requires_grad=True), torch.tensor([0, 7, 18], dtype=torch.int32)
leaves = (q, k, x, sink, scores)
def call(i):
    reduce = (None, "heads", "keys", "entropy", "mass")[i % 5]
    loss = crossmodal.associate(q, k, reduce=reduce, sink=sink).square().sum()
    loss = loss + crossmodal.associate(q, k, topk=2)[0].sum()
    loss = loss + crossmodal.attention_varlen(x, x, x, ends, ends, 11, 11, dropout_p=0.3, sink=sink).sum()
    loss = loss + crossmodal.weighted_sum(scores, k).sum() + crossmodal.softmax_weighted_sum(scores, k).sum()
    loss = loss + crossmodal.attention(q, k, k, dropout_p=0.3, window_size=(3, 1), softcap=2.0).sum()
    loss.backward()
    for leaf in leaves: leaf.grad = None
    try:
        crossmodal.attention_varlen(x, x, x, ends, ends, 3, 11)
    except ValueError:
        pass
for i in range(500): call(i)
before = rss_mib()
for i in range(10_000): call(i)
print(rss_mib() - before)
""")
    assert growth < 8


@pytest.mark.parametrize(
    "options", ['reduce="heads"', 'reduce="keys"', 'reduce="entropy"', 'reduce="mass"', "topk=4"], ids=str
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_summary_of_weights_and_its_gradient_need_memory_in_proportion_to_the_summary(dtype, options):
    """16 heads of 2048 x 2048 weights would take 256 MiB; the mean over heads, the largest summary, takes 16."""
    growth = printed_by(f"""
q, k = (torch.randn(1, 16, 2048, 16).to(torch.{dtype}).requires_grad_() for _ in range(2))
def call(q, k):
    found = crossmodal.associate(q, k, {options})
    (found[0] if isinstance(found, tuple) else found).square().sum().backward()
call(q[:, :, :64], k[:, :, :64])
before = peak_mib()
call(q, k)
print(peak_mib() - before)
""")
    assert growth < 96  # of the mean: the result, its square, two gradients of it


def test_all_weights_need_no_more_than_themselves():
    growth = printed_by("""
q, k = torch.randn(1, 8, 2048, 16), torch.randn(1, 8, 2048, 16)
crossmodal.associate(q[:, :, :64], k[:, :, :64])
before = peak_mib()
weights = crossmodal.associate(q, k)
print((peak_mib() - before) / (weights.nbytes / 2**20))
""")
    assert growth < 1.25


def test_fuse_makes_no_concatenation():
    """Keys and values of three modalities are 96 MiB; their concatenation would be as much again."""
    growth = printed_by("""
q = torch.randn(1, 8, 4, 64, requires_grad=True)
sources = [Source(torch.randn(1, 8, 8192, 64), torch.randn(1, 8, 8192, 64)) for _ in range(3)]
small = [Source(s.key[:, :, :64], s.value[:, :, :64]) for s in sources]
crossmodal.fuse(q, small, return_mass=True).out.sum().backward()
before = peak_mib()
crossmodal.fuse(q, sources, return_mass=True).out.sum().backward()
print(peak_mib() - before)
""")
    assert growth < 24


def test_packed_sequences_need_no_padding():
    """One long sequence beside 255 short ones: padded, each of the three would take 256 MiB."""
    growth = printed_by("""
lengths = torch.tensor([4096] + [1] * 255)
ends = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int()
x = torch.randn(int(ends[-1]), 1, 64, requires_grad=True)
crossmodal.attention_varlen(x[:64], x[:64], x[:64], ends[:1].repeat(2), ends[:1].repeat(2), 0, 0).sum().backward()
before = peak_mib()
crossmodal.attention_varlen(x, x, x, ends, ends, 4096, 4096).sum().backward()
print(peak_mib() - before)
""")
    assert growth < 48


def test_softmax_weighted_sum_stores_no_weights():
    """Beside 256 MiB of scores the weights would take another 256; training keeps none for backward either."""
    growth = printed_by("""
scores, values = torch.randn(1, 16, 2048, 2048, requires_grad=True), torch.randn(1, 16, 2048, 16)
crossmodal.softmax_weighted_sum(scores[:, :, :64], values).sum()
before = peak_mib()
kept = crossmodal.softmax_weighted_sum(scores, values)
print(peak_mib() - before)
""")
    assert growth < 48


def test_transposed_views_are_not_copied():
    """Query, keys and values as a projection leaves them, (B, L, H, D): a copy of one would take 32 MiB."""
    growth = printed_by("""
k, v = (torch.randn(1, 16384, 8, 64).transpose(1, 2) for _ in range(2))
q = torch.randn(1, 4, 8, 64).transpose(1, 2)
crossmodal.attention(q, k[:, :, :64], v[:, :, :64])
before = peak_mib()
crossmodal.attention(q, k, v)
print(peak_mib() - before)
""")
    assert growth < 16
