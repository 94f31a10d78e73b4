"""What only a GPU has: streams, graphs, several devices, and a CPU to agree with."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

import crossmodal
from crossmodal import Source

pytestmark = pytest.mark.cuda


def heads(*shape, dtype=torch.bfloat16):
    return torch.randn(shape).to("cuda", dtype)


def test_strict_mode_lets_cuda_tensors_pass():
    q, k = heads(2, 4, 33, 64).requires_grad_(), heads(2, 4, 77, 64).requires_grad_()
    with crossmodal.strict():
        crossmodal.attention(q, k, k, is_causal=True).float().sum().backward()
        crossmodal.associate(q, k, reduce="heads")
        crossmodal.fuse(q, [Source(k, k), None, Source(k, k)], return_mass=True)
    assert q.grad.isfinite().all() and k.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dropout_mask_is_that_of_the_cpu(dtype):
    """With values of one the output is the share of weight that was kept: a mask's own signature."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 3, 19, 8, dtype=dtype), torch.randn(2, 3, 37, 8, dtype=dtype)
    v = torch.eye(37, dtype=dtype).expand(2, 3, 37, 37)
    seed = torch.tensor([2**40 + 7])
    on_cpu = crossmodal.attention(q, k, v, dropout_p=0.4, dropout_seed=seed)
    on_gpu = crossmodal.attention(q.cuda(), k.cuda(), v.cuda(), dropout_p=0.4, dropout_seed=seed.cuda()).cpu()
    assert torch.equal(on_cpu == 0, on_gpu == 0)
    torch.testing.assert_close(on_cpu, on_gpu)


def test_tf32_rounds_no_more_than_torch_does():
    torch.manual_seed(0)
    lengths = (64, 96, 96)  # multiples of 4: for others cuBLAS may have no kernel that rounds
    q, k, v = (torch.randn(2, 4, n, 64, device="cuda", requires_grad=True) for n in lengths)
    exact = sdpa(*(t.double() for t in (q, k, v)))

    def error(out):
        gradients = torch.autograd.grad(out.square().sum(), (q, k, v))
        wanted = torch.autograd.grad(exact.square().sum(), (q, k, v), retain_graph=True)
        pairs = [(out, exact), *zip(gradients, wanted, strict=True)]
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)

    full = error(crossmodal.attention(q, k, v))
    torch.set_float32_matmul_precision("high")
    try:
        with sdpa_kernel(SDPBackend.MATH):
            theirs = error(sdpa(q, k, v))
        ours = error(crossmodal.attention(q, k, v))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert 10 * full < ours < 2 * theirs


def test_the_current_stream_is_used():
    q, k = heads(2, 4, 64, 64), heads(2, 4, 64, 64)
    v = heads(2, 4, 64, 64)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a launch on another stream would overtake this
        v.zero_()
        out = crossmodal.attention(q, k, v)
    stream.synchronize()
    assert torch.equal(out, torch.zeros_like(out))


def test_nothing_waits_for_the_device():
    q, k = heads(2, 4, 64, 64).requires_grad_(), heads(2, 4, 64, 64).requires_grad_()
    lengths = torch.tensor([3, 64], device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = crossmodal.attention(q, k, k, key_lengths=lengths, dropout_p=0.1)
        out.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("repeats", [1, 200], ids=["few tiles", "tiles from a queue"])
@pytest.mark.parametrize("seqlen_q", [1, 20])
def test_a_captured_graph_follows_lengths_that_change(seqlen_q, repeats):
    batch = 3 * repeats
    q, k, v = heads(batch, 2, seqlen_q, 64), heads(batch, 2, 90, 64), heads(batch, 2, 90, 64)
    lengths = torch.tensor([90, 1, 40], device="cuda").repeat(repeats)
    crossmodal.attention(q, k, v, key_lengths=lengths)  # loads the module outside of the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = crossmodal.attention(q, k, v, key_lengths=lengths)
    for new in ([1, 90, 0], [17, 64, 65]):
        lengths.copy_(torch.tensor(new).repeat(repeats))
        graph.replay()
        assert torch.equal(out, crossmodal.attention(q, k, v, key_lengths=lengths))


@pytest.mark.parametrize("seqlen_q", [1, 20])
def test_captured_gradients_follow_lengths_that_change(seqlen_q):
    inputs = [heads(3, 2, n, 64).requires_grad_() for n in (seqlen_q, 90, 90)]
    lengths = torch.tensor([90, 1, 40], device="cuda")

    def gradients():
        out = crossmodal.attention(*inputs, key_lengths=lengths)
        return torch.autograd.grad(out, inputs, torch.ones_like(out))

    stream = torch.cuda.Stream()  # where torch wants a first run before autograd is captured
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        gradients()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients()
    for new in ([1, 90, 0], [17, 64, 65]):
        lengths.copy_(torch.tensor(new))
        graph.replay()
        assert all(map(torch.equal, captured, gradients()))


def test_a_captured_graph_follows_offsets_that_change():
    q, k = heads(60, 2, 64), heads(90, 2, 64)
    ends_q = torch.tensor([0, 30, 60], dtype=torch.int32, device="cuda")
    ends_k = torch.tensor([0, 50, 90], dtype=torch.int32, device="cuda")
    crossmodal.attention_varlen(q, k, k, ends_q, ends_k, 60, 90)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = crossmodal.attention_varlen(q, k, k, ends_q, ends_k, 60, 90)
    ends_q.copy_(torch.tensor([0, 5, 50]))
    ends_k.copy_(torch.tensor([0, 0, 77]))
    graph.replay()
    assert torch.equal(out, crossmodal.attention_varlen(q, k, k, ends_q, ends_k, 60, 90))
    assert (out[:5] == 0).all() and (out[50:] == 0).all()


def test_gradients_are_repeatable_bit_for_bit():
    torch.manual_seed(0)
    q, k, v = (heads(4, 8, n, 64).requires_grad_() for n in (197, 77, 77))
    bias = torch.randn(8, 197, 77, device="cuda", requires_grad=True)

    def gradients():
        return torch.autograd.grad(crossmodal.attention(q, k, v, bias).float().square().sum(), (q, k, v, bias))

    first = gradients()
    for _ in range(3):
        assert all(map(torch.equal, first, gradients()))


@pytest.mark.filterwarnings("ignore")  # torch says that a rule of its own is slow
def test_transforms_agree_with_a_loop():
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, 4, n, 32, device="cuda") for n in (17, 40, 40))
    lengths = torch.tensor([[40, 3], [0, 17], [8, 8]], device="cuda")

    def loss(q, k, v, lengths):
        return crossmodal.attention(q, k, v, key_lengths=lengths).square().sum()

    got = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(q, k, v, lengths)
    each = [torch.func.grad(loss, argnums=(0, 1, 2))(*x) for x in zip(q, k, v, lengths, strict=True)]
    for gradient, wanted in zip(got, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(gradient, torch.stack(wanted))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_of_another_device_run_there():
    q = torch.randn(1, 2, 16, 64, device="cuda:1", dtype=torch.bfloat16)
    assert crossmodal.attention(q, q, q).device == q.device
    assert torch.cuda.current_device() == 0
