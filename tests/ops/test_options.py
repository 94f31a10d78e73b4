"""What `attention`, `fuse` and `associate` say about the softmax, one option at a time, on every instruction set."""

from dataclasses import replace

import pytest
import torch

import crossmodal
from crossmodal import Source, reference
from tests.accuracy import check
from tests.problems import Association, Fusion, Modality, Sink, Term

INF = float("inf")
LENGTHS = Modality(33, torch.int32)
PLAIN = Fusion(
    (Modality(33),),
    batch=2,
    heads=4,
    seqlen_q=17,
    head_dim=20,
    head_dim_v=12,
    asked=frozenset({"out", "lse"}),
    as_attention=True,
)
LOWER_RIGHT = {"causal_align": "lower_right", "modalities": (LENGTHS,), "query_lengths": torch.int64}

OPTIONS = {  # what changes in PLAIN
    "scale": {"scale": -0.7},
    "softcap": {"softcap": 2.0},
    "softcap before mask": {"softcap": 0.5, "modalities": (Modality(33, mask=Term(torch.float32, hides=0.3)),)},
    "sink": {"sink": Sink()},
    "sink of one head alone": {"sink": Sink(hides=0.5)},
    "query_lengths": {"query_lengths": torch.int32},
    "causal": {"is_causal": True},
    "causal at lower_right": {"is_causal": True, **LOWER_RIGHT},
    "window": {"window_size": (3, 5)},
    "window to the left": {"window_size": (3, -1)},
    "window to the right": {"window_size": (-1, 5)},
    "window at lower_right": {"window_size": (3, 5), **LOWER_RIGHT},
    "causal window": {"window_size": (3, 5), "is_causal": True},
    "causal window at lower_right": {"window_size": (3, 5), "is_causal": True, **LOWER_RIGHT},
    "one head of keys": {"modalities": (Modality(33, heads_k=1),)},
    "two heads of keys": {"modalities": (Modality(33, heads_k=2),)},
    "dropout": {"dropout_p": 0.4, "dropout_seed": 7},
}


@pytest.mark.parametrize("seqlen_q", [3, 130], ids=["few_queries", "many_queries"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_as_accurate_as_torch(isa, name, seqlen_q):
    check(replace(PLAIN, seqlen_q=seqlen_q, **OPTIONS[name]))


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_in_every_dtype_is_as_accurate_as_torch(dtype, name):
    check(replace(PLAIN, dtype=dtype, **OPTIONS[name]))


def test_every_source_may_have_its_own_number_of_heads(isa, dtype):
    """Grouped-query attention, gradients too: groups of 6, 3, 2 and 1 query heads."""
    modalities = tuple(Modality(n, torch.int64, heads_k=h) for n, h in ((33, 1), (9, 2), (50, 3), (7, 6)))
    asked = frozenset({"out", "lse", "mass"})
    check(replace(PLAIN, modalities=modalities, dtype=dtype, heads=6, as_attention=False, asked=asked))


@pytest.mark.parametrize("option", ["sink", "softcap", "query_lengths", "scale"])
def test_every_option_of_fuse_is_as_accurate_as_torch(isa, option):
    asked = frozenset({"out", "lse", "mass"})
    modalities = (Modality(33, torch.int64), None, Modality(9, heads_k=2))
    check(replace(PLAIN, modalities=modalities, as_attention=False, asked=asked, **OPTIONS[option]))


@pytest.mark.parametrize("option", ["sink", "softcap", "query_lengths", "scale", "two heads of keys"])
@pytest.mark.parametrize("reduce", [None, "heads", "keys", "entropy", "mass"])
def test_every_option_of_associate_is_as_accurate_as_torch(isa, option, reduce):
    check(Association(replace(PLAIN, asked=frozenset({"out"}), **OPTIONS[option]), reduce))


@pytest.mark.parametrize("option", ["sink", "softcap", "query_lengths", "scale", "two heads of keys"])
def test_every_option_of_topk_is_as_accurate_as_torch(isa, option):
    check(Association(replace(PLAIN, asked=frozenset({"out"}), **OPTIONS[option]), topk=3))


def test_mass_and_the_share_of_the_sink_sum_to_one(isa):
    query, key, sink = torch.randn(2, 4, 17, 8), torch.randn(2, 4, 33, 8), torch.randn(4)
    result = crossmodal.fuse(query, [Source(key, key), None], sink=sink, return_lse=True, return_mass=True)
    share = torch.exp(sink[None, :, None] - result.lse)
    torch.testing.assert_close(result.mass.sum(-1) + share, torch.ones(2, 4, 17))


def test_sink_of_zero_is_one_more_key_of_zeros(isa):
    """What `add_zero_attn` of torch.nn.MultiheadAttention adds."""
    query, key, value = torch.randn(2, 4, 17, 8), torch.randn(2, 4, 33, 8), torch.randn(2, 4, 33, 6)
    padded = [torch.nn.functional.pad(t, (0, 0, 0, 1)) for t in (key, value)]
    got = crossmodal.attention(query, key, value, sink=torch.zeros(4), return_lse=True)
    torch.testing.assert_close(got, crossmodal.attention(query, *padded, return_lse=True))


def test_sink_is_neither_scaled_nor_capped_nor_masked(isa):
    """Beside equal scores of 0, whose cap and scale are 0 too, its logit is all that scale and cap could change."""
    query, key, sink = torch.zeros(1, 2, 5, 4), torch.randn(1, 2, 9, 4), torch.tensor([5.0, -3.0])
    mask = torch.arange(9) < 3
    lse = crossmodal.attention(query, key, key, mask, scale=0.01, softcap=0.5, sink=sink, return_lse=True)[1]
    wanted = torch.logaddexp(sink, torch.tensor(3.0).log())
    torch.testing.assert_close(lse, wanted[None, :, None].expand(1, 2, 5))


@pytest.mark.parametrize("seqlen_q", [3, 20], ids=["few_queries", "many_queries"])
def test_lse_of_a_row_with_nothing_but_the_sink_is_the_sink(isa, dtype, seqlen_q):
    query, key = torch.randn(2, 2, seqlen_q, 8).to(dtype), torch.randn(2, 2, 9, 8).to(dtype)
    sink = torch.tensor([0.3, -1.0], requires_grad=True)
    lengths = torch.tensor([0, 9])
    out, lse = crossmodal.attention(query, key, key, key_lengths=lengths, sink=sink, return_lse=True)
    assert (out[0] == 0).all()
    assert torch.equal(lse[0], sink.detach().to(lse.dtype)[:, None].expand(2, seqlen_q))
    assert torch.equal(torch.autograd.grad(lse[0].sum(), sink)[0], torch.full((2,), float(seqlen_q)))


def test_without_any_modality_lse_is_the_sink():
    sink = torch.tensor([0.3, -1.0], requires_grad=True)
    lse = crossmodal.fuse(torch.randn(1, 2, 3, 4), [None], sink=sink, return_lse=True).lse
    assert torch.equal(lse, sink.detach()[None, :, None].expand(1, 2, 3))
    assert torch.autograd.grad(lse.sum(), sink)[0].tolist() == [3.0, 3.0]


def test_queries_beyond_their_length_have_no_lse_beside_a_sink(isa):
    query, key = torch.randn(2, 2, 5, 8), torch.randn(2, 2, 9, 8)
    options = {"query_lengths": torch.tensor([5, 2]), "sink": torch.zeros(2), "return_lse": True}
    got = crossmodal.fuse(query, [Source(key, key)], return_mass=True, **options)
    assert (got.out[1, :, 2:] == 0).all() and (got.mass[1, :, 2:] == 0).all()
    wanted = reference.fuse(query, [Source(key, key)], **options).lse
    torch.testing.assert_close(got.lse, wanted)
    assert (got.lse[1, :, 2:] == -INF).all()


def test_gradient_through_an_absent_column_of_mass_is_zero():
    """A loss on the mass of what is not there trains nothing."""
    query, key = torch.randn(1, 2, 3, 4, requires_grad=True), torch.randn(1, 2, 5, 4)
    empty = Source(key, key, torch.zeros(1, dtype=torch.int64))
    for absent in (None, empty):
        mass = crossmodal.fuse(query, [Source(key, key), absent], return_mass=True).mass
        gradient = torch.autograd.grad(mass[..., 1].sum(), query, allow_unused=True)[0]
        assert gradient is None or (gradient == 0).all()


def test_mass_is_differentiable_beside_an_absent_source(isa):
    asked = frozenset({"mass"})
    modalities = (None, Modality(9), None, Modality(33, torch.int64))
    check(replace(PLAIN, modalities=modalities, as_attention=False, asked=asked))


def test_without_enable_gqa_fewer_heads_are_refused():
    query, key = torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 5, 8)
    with pytest.raises(ValueError, match="do not broadcast"):
        crossmodal.attention(query, key, key)


@pytest.mark.parametrize("lengths", [torch.int32, torch.int64], ids=str)
def test_lengths_of_either_dtype_are_as_accurate_as_torch(isa, lengths):
    modalities = (Modality(33, lengths), Modality(9, lengths))
    check(replace(PLAIN, modalities=modalities, as_attention=False, query_lengths=lengths))
    check(Association(replace(PLAIN, modalities=modalities, as_attention=False, query_lengths=lengths), "entropy"))
