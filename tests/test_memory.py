"""Odd sizes and strides: right results, and no access outside a tensor.

Inputs end at a page that may not be touched, so that reading one element too far ends the process.
Outputs and scratch memory are guarded where `.ci/run` repeats this file with
`python -m build_tools.sanitize address`; AddressSanitizer alone would not do, since it does not see
the masked loads of AVX-512.
"""

import ctypes
import itertools
import mmap
import random

import pytest
import torch

import crossmodal
from crossmodal import Source, reference

pytestmark = pytest.mark.memory

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LAYOUTS = ("plain", "heads_inside", "gaps", "strided_last")
# Around the widths of vectors (4 to 32 elements) and of the kernels' blocks (48 to 512).
SIZES = (0, 1, 2, 3, 5, 8, 15, 17, 33, 47, 49, 65, 97, 130)
HEAD_DIMS = (1, 2, 3, 7, 16, 31, 33, 65)
CASES_PER_TEST = 5
PROT_NONE = 0


def at_the_end(numel: int, dtype: torch.dtype) -> torch.Tensor:
    """`numel` random numbers right before a page that may not be touched."""
    if numel == 0:
        return torch.empty(0, dtype=dtype)
    size = numel * dtype.itemsize
    end = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, end + mmap.PAGESIZE)
    tensor = torch.frombuffer(memory, dtype=dtype, count=numel, offset=end - size)
    guard = ctypes.c_void_p(tensor.data_ptr() + size)
    assert ctypes.CDLL(None).mprotect(guard, mmap.PAGESIZE, PROT_NONE) == 0
    return tensor.copy_(torch.randn(numel))


def make(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> torch.Tensor:
    batch, heads, rows, width = shape
    if layout == "heads_inside":
        flat = at_the_end(batch * rows * heads * width, dtype)
        return flat.view(batch, rows, heads, width).transpose(1, 2)
    if layout == "gaps":
        flat = at_the_end(batch * heads * rows * (width + 3), dtype)
        return flat.view(batch, heads, rows, width + 3)[..., 3:]
    if layout == "strided_last":
        flat = at_the_end(batch * heads * rows * width, dtype)
        return flat.view(batch, heads, width, rows).transpose(2, 3)
    return at_the_end(batch * heads * rows * width, dtype).view(shape)


# Coarse on purpose: exactness is tested elsewhere, here a wrong element is one read from nowhere.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2, torch.float64: 1e-8}


def assert_close(got: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    assert got.shape == wanted.shape
    assert torch.isfinite(got).all()
    if wanted.numel():
        error = (got.double() - wanted.double()).abs().max()
        assert error <= TOLERANCE[dtype] * (1 + wanted.double().abs().max())


def assert_same(function, twin, tensors: list[torch.Tensor], dtype: torch.dtype) -> None:
    """Outputs and gradients of `function` are those of its twin in `crossmodal.reference`."""
    results = []
    for candidate in (function, twin):
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        out = candidate(*leaves)
        torch.manual_seed(0)
        gradients = torch.autograd.grad(out, leaves, torch.randn(out.shape).to(out.dtype))
        results.append([out.detach(), *gradients])
    for got, wanted in zip(*results, strict=True):
        assert_close(got, wanted, dtype)


@pytest.fixture(params=itertools.product(DTYPES, LAYOUTS), ids=lambda p: f"{p[0]}-{p[1]}"[6:])
def case(request):
    dtype, layout = request.param
    return dtype, layout, random.Random(f"{dtype} {layout}")


def test_attention_stays_inside_its_tensors(case, isa):
    dtype, layout, rng = case
    for _ in range(CASES_PER_TEST):
        batch, heads = rng.randint(1, 3), rng.randint(1, 3)
        rows, keys = rng.choice(SIZES), rng.choice(SIZES)
        width, value_width = rng.choice(HEAD_DIMS), rng.choice(HEAD_DIMS)
        query = make((batch, heads, rows, width), dtype, layout)
        key = make((batch, heads, keys, width), dtype, layout)
        value = make((batch, heads, keys, value_width), dtype, layout)
        lengths = torch.tensor([rng.randint(0, keys) for _ in range(batch)])
        bias = make((batch, 1, rows, keys), dtype, layout)
        options = {"key_lengths": lengths, "is_causal": rng.random() < 0.3}
        assert_same(
            lambda q, k, v, b, o=options: crossmodal.attention(q, k, v, b, **o),
            lambda q, k, v, b, o=options: reference.attention(q, k, v, b, **o),
            [query, key, value, bias],
            dtype,
        )


def test_fuse_stays_inside_its_tensors(case, isa):
    dtype, layout, rng = case
    for _ in range(CASES_PER_TEST):
        batch, heads = rng.randint(1, 3), rng.randint(1, 3)
        width, value_width = rng.choice(HEAD_DIMS), rng.choice(HEAD_DIMS)
        tensors = [make((batch, heads, rng.choice(SIZES), width), dtype, layout)]
        masks = []
        for _ in range(rng.randint(1, 3)):
            keys = rng.choice(SIZES)
            tensors.append(make((batch, heads, keys, width), dtype, layout))
            tensors.append(make((batch, heads, keys, value_width), dtype, layout))
            masks.append((at_the_end(batch * keys, dtype) > 0).view(batch, 1, 1, keys))

        def fused(namespace, query, *flat, masks=masks):
            pairs = zip(flat[::2], flat[1::2], masks, strict=True)
            sources = [Source(key, value, mask=mask) for key, value, mask in pairs]
            return namespace.fuse(query, sources).out

        assert_same(lambda *t, f=fused: f(crossmodal, *t), lambda *t, f=fused: f(reference, *t), tensors, dtype)


def test_weighted_sum_stays_inside_its_tensors(case, isa):
    dtype, layout, rng = case
    for _ in range(CASES_PER_TEST):
        batch, heads = rng.randint(1, 3), rng.randint(1, 3)
        rows, keys = rng.choice(SIZES), rng.choice(SIZES)
        weights = make((batch, heads, rows, keys), dtype, layout)
        values = make((batch, heads, keys, rng.choice(HEAD_DIMS)), dtype, layout)
        lengths = torch.tensor([rng.randint(0, keys) for _ in range(batch)])
        assert_same(
            lambda w, v, n=lengths: crossmodal.weighted_sum(w, v, lengths=n),
            lambda w, v, n=lengths: reference.weighted_sum(w, v, lengths=n),
            [weights, values],
            dtype,
        )


def test_softmax_weighted_sum_stays_inside_its_tensors(case, isa):
    dtype, layout, rng = case
    for _ in range(CASES_PER_TEST):
        batch, heads = rng.randint(1, 3), rng.randint(1, 3)
        rows, keys = rng.choice(SIZES), rng.choice(SIZES)
        scores = make((batch, heads, rows, keys), dtype, layout)
        values = make((batch, heads, keys, rng.choice(HEAD_DIMS)), dtype, layout)
        mask = (at_the_end(rows * keys, dtype) > -1).view(rows, keys)
        assert_same(
            lambda s, v, m=mask: crossmodal.softmax_weighted_sum(s, v, mask=m),
            lambda s, v, m=mask: reference.softmax_weighted_sum(s, v, mask=m),
            [scores, values],
            dtype,
        )


def test_packed_sequences_stay_inside_their_tensors(case, isa):
    """Each with options that the other tests of this file leave out."""
    dtype, layout, rng = case
    for _ in range(2):
        heads_k, group = rng.randint(1, 2), rng.randint(1, 3)
        width, value_width = rng.choice(HEAD_DIMS), rng.choice(HEAD_DIMS)
        lengths = [(rng.choice(SIZES), rng.choice(SIZES)) for _ in range(rng.randint(1, 4))]
        ends = torch.tensor([(0, 0), *lengths]).cumsum(0).int()
        total_q, total_k = ends[-1].tolist()
        query = make((1, heads_k * group, total_q, width), dtype, layout)[0].transpose(0, 1)
        key = make((1, heads_k, total_k, width), dtype, layout)[0].transpose(0, 1)
        value = make((1, heads_k, total_k, value_width), dtype, layout)[0].transpose(0, 1)
        longest = [max(pair[i] for pair in lengths) for i in range(2)]
        arguments = (ends[:, 0].contiguous(), ends[:, 1].contiguous(), *longest)
        options = {"window_size": (rng.choice((-1, 0, 9)), rng.choice((-1, 0, 9))), "softcap": rng.choice((0.0, 2.0))}
        assert_same(
            lambda *t, a=arguments, o=options: crossmodal.attention_varlen(*t, *a, enable_gqa=True, **o),
            lambda *t, a=arguments, o=options: reference.attention_varlen(*t, *a, enable_gqa=True, **o),
            [query, key, value],
            dtype,
        )


@pytest.mark.parametrize("reduce", [None, "heads", "keys", "entropy"])
def test_gradient_of_associate_stays_inside_its_tensors(case, isa, reduce):
    dtype, layout, rng = case
    for _ in range(CASES_PER_TEST):
        batch, heads, width = rng.randint(1, 3), rng.randint(1, 3), rng.choice(HEAD_DIMS)
        query = make((batch, heads, rng.choice(SIZES), width), dtype, layout)
        key = make((batch, heads, rng.choice(SIZES), width), dtype, layout)
        assert_same(
            lambda q, k: crossmodal.associate(q, k, reduce=reduce),
            lambda q, k: reference.associate(q, k, reduce=reduce),
            [query, key],
            dtype,
        )


@pytest.mark.parametrize("options", [{"reduce": "heads"}, {"reduce": "keys"}, {"topk": 3}], ids=str)
def test_associate_stays_inside_its_tensors(case, isa, options):
    dtype, layout, rng = case
    for _ in range(CASES_PER_TEST):
        batch, heads, width = rng.randint(1, 3), rng.randint(1, 3), rng.choice(HEAD_DIMS)
        query = make((batch, heads, rng.choice(SIZES), width), dtype, layout)
        key = make((batch, heads, rng.choice(SIZES), width), dtype, layout)
        got = crossmodal.associate(query, key, **options)
        wanted = reference.associate(query, key, **options)
        if "topk" in options:  # ties may fall either way: weights, not indices
            got, wanted = got[0], wanted[0]
        assert_close(got, wanted, dtype)
