"""The same call gives the same bits, and the number of threads decides how fast, not what."""

import pytest
import torch

import crossmodal
from crossmodal import Source


def problem(dtype: torch.dtype):
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 4, n, 24).to(dtype).requires_grad_() for n in (90, 300, 300))
    biases = [torch.randn(shape, requires_grad=True) for shape in ((1, 4, 90, 300), (1, 1, 1, 300), (3, 1, 90, 1))]
    return [q, k, v, *biases]


def results(q, k, v, dense, per_key, per_query):
    sources = [
        Source(k, v, torch.tensor([300, 0, 111]), bias=dense),
        Source(v, k, mask=per_key, bias=per_query),
    ]
    result = crossmodal.fuse(q, sources, return_lse=True, return_mass=True)
    loss = result.out.float().square().sum() + result.lse.sum() + result.mass.square().sum()
    return [*result, *torch.autograd.grad(loss, (q, k, v, dense, per_key, per_query))]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_repeats_bit_for_bit(isa, dtype, count, threads):
    threads(count)
    inputs = problem(dtype)
    first = results(*inputs)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(results(*inputs), first, strict=True))


def test_outputs_do_not_depend_on_the_number_of_threads(isa, threads):
    inputs = problem(torch.float32)
    threads(1)
    one = results(*inputs)
    threads(3)
    three = results(*inputs)
    shared_biases = 3  # sums over samples or heads are cut by thread: equal but for rounding
    for a, b in zip(one[:-shared_biases], three[:-shared_biases], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(one[-shared_biases:], three[-shared_biases:], strict=True):
        torch.testing.assert_close(a, b)


def test_weighted_sum_repeats_bit_for_bit(isa, threads):
    threads(2)
    weights, values = torch.rand(3, 4, 90, 300, requires_grad=True), torch.randn(3, 4, 300, 24, requires_grad=True)

    def run():
        out = crossmodal.weighted_sum(weights, values)
        return [out, *torch.autograd.grad(out.square().sum(), (weights, values))]

    first = run()
    assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))


def test_callers_in_several_threads_do_not_disturb_each_other(isa):
    import concurrent.futures

    inputs = [[t.detach() for t in problem(torch.float32)[:3]] for _ in range(8)]
    wanted = [crossmodal.attention(*x) for x in inputs]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: crossmodal.attention(*x), inputs * 4))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted * 4, strict=True))
