"""weighted_sum on a GPU: what the CPU computes, to the same rules."""

import pytest
import torch

import crossmodal
from crossmodal import reference
from tests.tolerance import assert_as_accurate

pytestmark = pytest.mark.cuda

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# (batch, num_heads, seqlen_q, seqlen_k, head_dim): around the kernel's block of 8 x 32 x 128, and empty.
SHAPES = (
    (2, 3, 8, 32, 128),
    (1, 2, 9, 33, 129),
    (3, 1, 1, 1, 1),
    (2, 2, 7, 70, 40),
    (2, 2, 0, 5, 4),
    (2, 2, 5, 0, 4),
    (0, 2, 5, 5, 4),
)


def assert_as_on_cpu(weights, values, **options):
    on_gpu = {name: tensor.cuda() for name, tensor in options.items()}
    got = crossmodal.weighted_sum(weights.cuda(), values.cuda(), **on_gpu).cpu()
    same_dtype = reference.weighted_sum(weights, values, **options)
    exact = reference.weighted_sum(weights.double(), values.double(), **options)
    assert_as_accurate("out", got, same_dtype, exact.numpy())


def random_problem(shape, dtype):
    batch, heads, rows, keys, width = shape
    weights = torch.randn(batch, heads, rows, keys).to(dtype)
    values = torch.randn(batch, keys, heads, width).to(dtype).transpose(1, 2)
    return weights, values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_result_is_that_of_the_cpu(shape, dtype):
    assert_as_on_cpu(*random_problem(shape, dtype))


@pytest.mark.parametrize("length_dtype", [torch.int32, torch.int64], ids=str)
def test_keys_beyond_the_length_may_be_nan(length_dtype):
    weights, values = random_problem((3, 2, 9, 40, 16), torch.float32)
    lengths = torch.tensor([0, 17, 40], dtype=length_dtype)
    values[0] = values[1, :, 17:] = float("nan")
    assert_as_on_cpu(weights, values, lengths=lengths)


def test_masked_keys_may_be_nan():
    weights, values = random_problem((2, 2, 9, 40, 16), torch.float32)
    mask = torch.rand(2, 1, 1, 40) < 0.5
    values[~mask.expand(2, 2, 1, 40).squeeze(2)] = float("nan")
    assert_as_on_cpu(weights, values, mask=mask)


def test_broadcast_weights_are_read_where_they_stand():
    weights, values = random_problem((2, 2, 9, 40, 16), torch.float32)
    assert_as_on_cpu(weights[:, :, :1].expand_as(weights), values)


def test_the_current_stream_is_used():
    weights, values = (tensor.cuda() for tensor in random_problem((2, 2, 64, 64, 64), torch.float32))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a launch on another stream would overtake this
        weights.zero_()
        out = crossmodal.weighted_sum(weights, values)
    stream.synchronize()
    assert torch.equal(out, torch.zeros_like(out))
