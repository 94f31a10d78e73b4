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


SCORES, ENDS = torch.randn(3, 4, 90, 300), torch.tensor([0, 7, 90, 270], dtype=torch.int32)
SINK, SEED = torch.randn(4), torch.tensor([7])


def packed(q, k, v, s, **options):
    q, k = (t.transpose(1, 2).flatten(0, 1)[:270] for t in (q, k))
    return crossmodal.attention_varlen(q, k, k, ENDS, ENDS, 180, 180, sink=s, **options)


FUNCTIONS = {  # of query, key, value and sink
    "dropout": lambda q, k, v, s: crossmodal.attention(q, k, v, dropout_p=0.3, dropout_seed=SEED),
    "every option": lambda q, k, v, s: crossmodal.attention(
        q, k[:, :2], v[:, :2], enable_gqa=True, sink=s, softcap=3.0, window_size=(50, 9), causal_align="lower_right"
    ),
    "attention_varlen": packed,
    "attention_varlen with dropout": lambda *x: packed(*x, dropout_p=0.3, dropout_seed=SEED),
    "softmax_weighted_sum": lambda q, k, v, s: crossmodal.softmax_weighted_sum(SCORES.to(q.dtype) + q[..., :1], v),
    "associate topk": lambda q, k, v, s: crossmodal.associate(q, k, topk=5, sink=s)[0],
    **{
        f"associate {reduce}": lambda q, k, v, s, reduce=reduce: crossmodal.associate(q, k, reduce=reduce, sink=s)
        for reduce in (None, "heads", "keys", "entropy", "mass")
    },
}


def outcome(name, tensors, sink):
    """Output and every gradient, those of the sink last."""
    leaves = [*tensors, sink]
    out = FUNCTIONS[name](*leaves)
    gradients = torch.autograd.grad(out.float().square().sum(), leaves, allow_unused=True)
    return [out.detach(), *(g for g in gradients if g is not None)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_repeats_bit_for_bit(isa, name, dtype, count, threads):
    threads(count)
    tensors, sink = problem(dtype)[:3], SINK.clone().requires_grad_()
    first = outcome(name, tensors, sink)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(outcome(name, tensors, sink), first, strict=True))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_output_is_the_same_for_any_number_of_threads(isa, name, threads):
    tensors, outputs = [t.detach() for t in problem(torch.float32)[:3]], []
    for count in (1, 3):
        threads(count)
        outputs.append(FUNCTIONS[name](*tensors, SINK))
    if name == "associate keys":  # a sum over queries, cut by thread
        torch.testing.assert_close(*outputs)
    else:
        assert torch.equal(*outputs)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_callers_of_every_function_in_several_threads_do_not_disturb_each_other(name):
    """Forward and backward, each with numbers of its own."""
    import concurrent.futures

    problems = [([(t * (1 + i)).detach().requires_grad_() for t in problem(torch.float32)[:3]], SINK) for i in range(4)]
    problems = [(tensors, sink.clone().requires_grad_()) for tensors, sink in problems]
    wanted = [outcome(name, *x) for x in problems]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: outcome(name, *x), problems * 3))
    for got, there in zip(found, wanted * 3, strict=True):
        for a, b in zip(got, there, strict=True):
            torch.testing.assert_close(a, b)


def test_callers_in_several_threads_do_not_disturb_each_other(isa):
    import concurrent.futures

    inputs = [[t.detach() for t in problem(torch.float32)[:3]] for _ in range(8)]
    wanted = [crossmodal.attention(*x) for x in inputs]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: crossmodal.attention(*x), inputs * 4))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted * 4, strict=True))
