"""`fuse`: one softmax over several modalities, forward and backward."""

from dataclasses import replace

import pytest
import torch

import crossmodal
from crossmodal import FusionResult, Source
from tests.accuracy import check
from tests.problems import Fusion, Modality, Term

ALL = frozenset({"out", "lse", "mass"})
KEY_MASK = Term(torch.bool, (False, True, True, False), hides=0.4)
DENSE_BIAS = Term(torch.float32, (True, False, False, False))
TRIO = Fusion(
    (Modality(33, torch.int64, mask=KEY_MASK), None, Modality(9, bias=DENSE_BIAS), Modality(50, torch.int32)),
    batch=2,
    heads=3,
    seqlen_q=17,
    head_dim=20,
    head_dim_v=12,
    asked=ALL,
)


def sources_of(*lengths: int, batch: int = 2, heads: int = 3) -> list[Source]:
    return [Source(torch.randn(batch, heads, n, 8), torch.randn(batch, heads, n, 6)) for n in lengths]


def query_of(seqlen_q: int = 5) -> torch.Tensor:
    return torch.randn(2, 3, seqlen_q, 8)


@pytest.mark.parametrize("seqlen_q", [1, 4, 17, 600])
def test_three_modalities_are_as_accurate_as_torch(isa, dtype, seqlen_q):
    check(replace(TRIO, dtype=dtype, seqlen_q=seqlen_q))


@pytest.mark.parametrize(
    "asked", [{"out"}, {"lse"}, {"mass"}, {"lse", "mass"}], ids=lambda names: "+".join(sorted(names))
)
def test_gradient_may_come_through_any_output(isa, dtype, asked):
    check(replace(TRIO, dtype=dtype, asked=frozenset(asked)))


@pytest.mark.parametrize("name", ["query", "key", "value", "mask", "bias"])
def test_gradient_may_be_asked_for_one_argument(isa, name):
    float_mask = replace(TRIO.modalities[0], mask=Term(torch.float32, (False, True, False, False), hides=0.4))
    check(replace(TRIO, modalities=(float_mask, *TRIO.modalities[1:]), differentiated=frozenset({name})))


def test_modalities_that_straddle_chunks_of_keys_are_as_accurate_as_torch(isa, dtype):
    lengths = (250, 10, 300, 1, 500)
    modalities = tuple(Modality(n, torch.int64 if n == 300 else None) for n in lengths)
    check(replace(TRIO, modalities=modalities, dtype=dtype, heads=1))


def test_forty_modalities_are_as_accurate_as_torch(isa):
    check(replace(TRIO, modalities=tuple(Modality(n % 7) for n in range(40)), heads=1))


def test_mask_and_bias_of_every_kind_add_up(isa, dtype):
    terms = [
        KEY_MASK,
        DENSE_BIAS,
        Term(torch.float32, (False, True, True, False), hides=0.2),
        Term(torch.bool, hides=0.3),
    ]
    for mask in terms:
        for bias in terms:
            check(replace(TRIO, modalities=(Modality(21, mask=mask, bias=bias), Modality(5)), dtype=dtype))


def test_equals_attention_on_the_concatenation_with_lengths_and_masks(isa):
    query, sources = query_of(), sources_of(7, 600, 1)
    lengths = [torch.tensor([7, 2]), torch.tensor([0, 555]), torch.tensor([1, 1])]
    bias = torch.randn(3, 5, 600)
    keep = torch.cat([torch.arange(s.key.shape[2]) < n[:, None] for s, n in zip(sources, lengths, strict=True)], dim=1)
    dense = torch.cat([torch.zeros(3, 5, 7), bias, torch.zeros(3, 5, 1)], dim=2)
    mask = dense.masked_fill(~keep[:, None, None], float("-inf"))
    wanted = crossmodal.attention(
        query, torch.cat([s.key for s in sources], 2), torch.cat([s.value for s in sources], 2), mask, return_lse=True
    )
    sources = [s._replace(lengths=n) for s, n in zip(sources, lengths, strict=True)]
    sources[1] = sources[1]._replace(bias=bias)
    got = crossmodal.fuse(query, sources, return_lse=True)
    torch.testing.assert_close((got.out, got.lse), wanted)


def test_order_of_modalities_does_not_matter(isa):
    query, sources = query_of(), sources_of(7, 30, 1)
    there = crossmodal.fuse(query, sources, return_mass=True)
    back = crossmodal.fuse(query, sources[::-1], return_mass=True)
    torch.testing.assert_close(there.out, back.out)
    torch.testing.assert_close(there.mass, back.mass.flip(-1))


def test_mass_is_the_attention_that_each_modality_receives(isa):
    """Values that say which modality a key belongs to turn the output into the mass."""
    query, sources = query_of(), sources_of(7, 30, 1)
    marked = [
        s._replace(value=torch.eye(3)[i].expand(2, 3, s.key.shape[2], 3).contiguous()) for i, s in enumerate(sources)
    ]
    result = crossmodal.fuse(query, marked, return_mass=True)
    torch.testing.assert_close(result.mass, result.out)


def test_mass_is_float32_beside_bfloat16_and_float64_beside_float64():
    for dtype, wanted in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        query, (source,) = query_of().to(dtype), sources_of(7)
        source = Source(source.key.to(dtype), source.value.to(dtype))
        result = crossmodal.fuse(query, [source], return_lse=True, return_mass=True)
        assert (result.out.dtype, result.lse.dtype, result.mass.dtype) == (dtype, wanted, wanted)


@pytest.mark.parametrize("seqlen_k", [30, 100, 300])  # beyond 64 and 256 keys other kernels take over
@pytest.mark.parametrize("seqlen_q", [2, 4, 20])
def test_absent_modality_and_one_of_length_zero_are_the_same(isa, dtype, seqlen_q, seqlen_k):
    query, (first, second) = query_of(seqlen_q).to(dtype), sources_of(7, seqlen_k)
    first, second = (Source(s.key.to(dtype), s.value.to(dtype)) for s in (first, second))
    zero = second._replace(lengths=torch.zeros(2, dtype=torch.int64))
    leaves = [query, first.key, first.value]
    results = []
    for modality in (None, zero):
        for leaf in leaves:
            leaf.requires_grad_()
        result = crossmodal.fuse(query, [first, modality], return_lse=True, return_mass=True)
        results.append([*result, *torch.autograd.grad(result.out.float().square().sum(), leaves)])
    assert all(torch.equal(absent, empty) for absent, empty in zip(*results, strict=True))


def test_absent_modality_keeps_its_column_of_mass(isa):
    query, (first, second) = query_of(), sources_of(7, 30)
    mass = crossmodal.fuse(query, [None, first, None, second], return_mass=True).mass
    assert mass.shape[-1] == 4 and (mass[..., [0, 2]] == 0).all()
    torch.testing.assert_close(mass[..., [1, 3]], crossmodal.fuse(query, [first, second], return_mass=True).mass)


def test_modality_missing_from_one_sample_leaves_the_other_samples_alone(isa):
    query, (first, second) = query_of(), sources_of(7, 30)
    part = crossmodal.fuse(query, [first, second._replace(lengths=torch.tensor([30, 0]))]).out
    torch.testing.assert_close(part[0], crossmodal.fuse(query, [first, second]).out[0])
    torch.testing.assert_close(part[1], crossmodal.fuse(query, [first]).out[1])


def test_samples_of_a_batch_do_not_touch_each_other(isa, dtype):
    query, (first, second) = query_of(20).to(dtype), sources_of(7, 30)
    first, second = (Source(s.key.to(dtype), s.value.to(dtype)) for s in (first, second))
    together = crossmodal.fuse(query, [first, second]).out
    for b in range(2):
        alone = [Source(s.key[b : b + 1], s.value[b : b + 1]) for s in (first, second)]
        assert torch.equal(together[b : b + 1], crossmodal.fuse(query[b : b + 1], alone).out)


def test_fields_that_were_not_asked_for_are_none():
    query, sources = query_of(), sources_of(7)
    result = crossmodal.fuse(query, sources)
    assert isinstance(result, FusionResult) and result.lse is None and result.mass is None


def test_one_tensor_as_key_and_value_of_two_modalities_gets_every_gradient():
    x = torch.randn(1, 2, 6, 8, requires_grad=True)
    copies = [x.detach().clone().requires_grad_() for _ in range(5)]
    got = crossmodal.fuse(x, [Source(x, x), Source(x, x)]).out
    wanted = crossmodal.fuse(copies[0], [Source(*copies[1:3]), Source(*copies[3:])]).out
    torch.testing.assert_close(
        torch.autograd.grad(got.square().sum(), x)[0], sum(torch.autograd.grad(wanted.square().sum(), copies))
    )


def test_value_of_the_modality_itself_is_a_weighted_mean_of_it(isa):
    """y = sum w x itself: inside the convex hull of the tokens."""
    x = torch.randn(2, 3, 40, 8)
    out = crossmodal.fuse(query_of(), [Source(x, x)]).out
    assert (out <= x.amax(dim=2, keepdim=True) + 1e-6).all() and (out >= x.amin(dim=2, keepdim=True) - 1e-6).all()


@pytest.mark.parametrize("sources", [[], [None], [None, None]], ids=len)
def test_without_any_modality_outputs_are_zero_and_lse_minus_infinity(sources):
    result = crossmodal.fuse(query_of(), sources, return_lse=True, return_mass=True)
    assert result.out.shape == (2, 3, 5, 8) and (result.out == 0).all()
    assert (result.lse == float("-inf")).all() and result.lse.shape == (2, 3, 5)
    assert result.mass.shape == (2, 3, 5, len(sources)) and (result.mass == 0).all()


@pytest.mark.parametrize("field", ["out", "lse", "mass"])
def test_without_any_modality_every_output_trains_with_gradient_zero(field):
    query = query_of().requires_grad_()
    result = crossmodal.fuse(query, [None, None], return_lse=True, return_mass=True)
    output = getattr(result, field)
    gradient = torch.autograd.grad(output, query, torch.ones_like(output))[0]
    assert (gradient == 0).all()


def test_query_of_one_head_serves_all_heads_of_the_modalities():
    """As in `attention`, whose leading dimensions broadcast."""
    query, sources = torch.randn(2, 1, 5, 8), sources_of(7, 30)
    wanted = crossmodal.fuse(query.expand(2, 3, 5, 8), sources).out
    torch.testing.assert_close(crossmodal.fuse(query, sources).out, wanted)


@pytest.mark.parametrize("shape", [(5, 8), (3, 5, 8), (2, 2, 3, 5, 8)], ids=str)
def test_leading_dimensions_come_back(shape):
    query, key = torch.randn(shape), torch.randn(*shape[:-2], 7, 8)
    result = crossmodal.fuse(query, [Source(key, key), None], return_lse=True, return_mass=True)
    assert result.out.shape == shape and result.lse.shape == shape[:-1] and result.mass.shape == (*shape[:-1], 2)
