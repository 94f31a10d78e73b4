"""`attention_varlen`: packed sequences give what each of them gives alone."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

import crossmodal
from tests.accuracy import check
from tests.problems import Varlen

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Packed:
    """(query rows, keys) of each sequence, and rows behind the last one."""

    lengths: tuple[tuple[int, int], ...]
    spare: tuple[int, int] = (0, 0)
    dtype: torch.dtype = torch.float32
    heads: int = 2
    heads_k: int = 2
    head_dim: int = 8
    head_dim_v: int = 8

    @property
    def cu_seqlens(self) -> tuple[Tensor, Tensor]:
        ends = torch.tensor([(0, 0), *self.lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return ends[:, 0].contiguous(), ends[:, 1].contiguous()

    @property
    def max_seqlens(self) -> tuple[int, int]:
        return max((q for q, _ in self.lengths), default=0), max((k for _, k in self.lengths), default=0)

    def build(self) -> tuple[Tensor, Tensor, Tensor]:
        """query, key and value."""
        return tuple(getattr(self.problem().build(), name).detach() for name in ("query", "key", "value"))

    def problem(self, **options) -> Varlen:
        return Varlen(
            tuple(q for q, _ in self.lengths),
            tuple(k for _, k in self.lengths),
            *self.spare,
            dtype=self.dtype,
            heads=self.heads,
            heads_k=self.heads_k,
            head_dim=self.head_dim,
            head_dim_v=self.head_dim_v,
            **{"asked": frozenset({"out", "lse"}), **options},
        )


MIXED = Packed(((17, 33), (1, 5), (40, 1), (0, 9), (6, 0), (64, 70)), spare=(3, 2), head_dim=20, head_dim_v=12)
SMALL = Packed(((3, 5), (0, 2), (1, 0), (4, 3)), spare=(1, 1), heads=4, heads_k=4)
SEED = torch.tensor([7])

SEQUENCES = {
    "different": MIXED.lengths,
    "one": ((77, 197),),
    "one query each": ((1, 250), (1, 3), (1, 100)),
    "long": ((300, 530), (3, 3)),
    "many": tuple((n % 7, n % 5) for n in range(60)),
    "of one row": ((1, 1),),
    "none": (),
    "of nothing": ((0, 0), (0, 0)),
    "without a key": ((5, 0), (2, 0)),
    "without a query": ((0, 5),),
}

OPTIONS = {
    "nothing": {},
    "scale": {"scale": 0.7},
    "causal": {"is_causal": True},
    "lower_right": {"is_causal": True, "causal_align": "lower_right"},
    "window": {"window_size": (2, 1)},
    "causal window at lower_right": {"is_causal": True, "window_size": (9, -1), "causal_align": "lower_right"},
    "softcap": {"softcap": 0.8},
    "sink": {"sink": torch.tensor([0.3, -1.0, 2.0, 0.0])},
}


def call(problem: Packed, *tensors: torch.Tensor, **options):
    return crossmodal.attention_varlen(*tensors, *problem.cu_seqlens, *problem.max_seqlens, **options)


def one_by_one(problem: Packed, q, k, v, **options):
    """`attention` on each sequence alone, packed again."""
    ends_q, ends_k = (ends.tolist() for ends in problem.cu_seqlens)
    out = q.new_zeros(*q.shape[:2], v.shape[2])
    lse = torch.full((q.shape[1], q.shape[0]), -INF, dtype=torch.float64 if q.dtype == torch.float64 else torch.float32)
    for b in range(len(problem.lengths)):
        rows, keys = slice(*ends_q[b : b + 2]), slice(*ends_k[b : b + 2])
        part = [t.transpose(0, 1)[None] for t in (q[rows], k[keys], v[keys])]
        found = crossmodal.attention(*part, **options, return_lse=True)
        out = out.index_copy(0, torch.arange(rows.start, rows.stop), found[0][0].transpose(0, 1))
        lse = lse.index_copy(1, torch.arange(rows.start, rows.stop), found[1][0])
    return out, lse


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_are_as_accurate_as_torch(isa, dtype, name):
    check(replace(MIXED, lengths=SEQUENCES[name], dtype=dtype).problem())


@pytest.mark.parametrize("asked", ["out", "lse"])
def test_gradient_may_come_through_one_output(isa, dtype, asked):
    check(replace(MIXED, dtype=dtype).problem(asked=frozenset({asked})))


def test_causal_sequences_are_as_accurate_as_torch(isa, dtype):
    check(replace(MIXED, dtype=dtype).problem(is_causal=True))


@pytest.mark.parametrize("heads_k", [1, 2, 4])
def test_grouped_query_attention_is_as_accurate_as_torch(isa, dtype, heads_k):
    check(replace(MIXED, dtype=dtype, heads=4, heads_k=heads_k).problem())


@pytest.mark.parametrize("head_dim", [1, 3, 64, 130])
def test_head_dim_of_any_size_is_as_accurate_as_torch(isa, head_dim):
    check(replace(MIXED, head_dim=head_dim, head_dim_v=head_dim + 1).problem())


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_gives_what_each_sequence_gives_alone(isa, name):
    problem = replace(MIXED, heads=4, heads_k=4)
    leaves = [t.requires_grad_() for t in problem.build()]
    got = call(problem, *leaves, **OPTIONS[name], return_lse=True)
    wanted = one_by_one(problem, *leaves, **OPTIONS[name])
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    losses = [out.sin().sum() + lse.masked_fill(lse == -INF, 0).sum() for out, lse in (got, wanted)]
    gradients = [torch.autograd.grad(loss, leaves) for loss in losses]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_sink_gets_the_gradient_of_every_sequence(isa):
    problem = replace(MIXED, heads=4, heads_k=4)
    sink = OPTIONS["sink"]["sink"].clone().requires_grad_()
    tensors = problem.build()
    results = (call(problem, *tensors, sink=sink, return_lse=True), one_by_one(problem, *tensors, sink=sink))
    rows = int(problem.cu_seqlens[0][-1])
    found = [torch.autograd.grad(out.square().sum() + lse[:, :rows].sum(), sink) for out, lse in results]
    torch.testing.assert_close(*found)


def test_dropout_draws_the_mask_of_the_padded_batch():
    """Rows and keys count from the start of each sequence, heads from that of the batch."""
    problem = replace(SMALL, spare=(0, 0))
    q, k, v = problem.build()
    options = {"dropout_p": 0.4, "dropout_seed": SEED}
    ends = problem.cu_seqlens
    (rows, keys), batch = problem.max_seqlens, len(problem.lengths)
    padded = [torch.zeros(batch, 4, n, t.shape[2]) for n, t in ((rows, q), (keys, k), (keys, v))]
    for b in range(batch):
        for into, packed, at in zip(padded, (q, k, v), (ends[0], ends[1], ends[1]), strict=True):
            length = int(at[b + 1] - at[b])
            into[b, :, :length] = packed[at[b] : at[b + 1]].transpose(0, 1)
    lengths = [end.diff() for end in ends]
    dense = crossmodal.attention(*padded, query_lengths=lengths[0], key_lengths=lengths[1], **options)
    wanted = torch.cat([dense[b, :, : lengths[0][b]].transpose(0, 1) for b in range(batch)])
    torch.testing.assert_close(call(problem, q, k, v, **options), wanted)
    assert not torch.equal(call(problem, q, k, v), wanted)


def test_slices_of_one_packed_projection_are_taken_as_they_are(isa, dtype):
    problem = Packed(((5, 5), (30, 30), (1, 1)), heads=3, heads_k=3)
    packed = torch.randn(36, 3, 3, 8).to(dtype)
    parts = list(packed.unbind(1))
    wanted = call(problem, *(t.contiguous() for t in parts))
    assert torch.equal(call(problem, *parts), wanted)
    transposed = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in parts]
    assert torch.equal(call(problem, *transposed), wanted)
    strided = [t.repeat_interleave(2, 2)[..., ::2] for t in parts]
    assert torch.equal(call(problem, *strided), wanted)


def test_rows_of_no_sequence_are_zero_and_may_be_nan(isa, dtype):
    problem = replace(MIXED, dtype=dtype, heads=4, heads_k=4)
    tensors = problem.build()
    ends = [int(end[-1]) for end in problem.cu_seqlens]
    sink = OPTIONS["sink"]["sink"]

    def run():
        leaves = [t.detach().requires_grad_() for t in tensors]
        out, lse = call(problem, *leaves, sink=sink, return_lse=True)
        torch.manual_seed(1)
        dout, dlse = torch.randn(out.shape).to(dtype), torch.randn(lse.shape, dtype=lse.dtype)
        dout[ends[0] :], dlse[:, ends[0] :] = NAN, NAN
        return [out.detach(), lse.detach(), *torch.autograd.grad((out, lse), leaves, (dout, dlse))]

    clean = run()
    for t, end in zip(tensors, (ends[0], ends[1], ends[1]), strict=True):
        t[end:] = NAN
    out, lse, *gradients = found = run()
    assert all(torch.equal(got, wanted) for got, wanted in zip(found, clean, strict=True))
    assert (out[ends[0] :] == 0).all() and (lse[:, ends[0] :] == -INF).all()
    assert all((g[end:] == 0).all() for g, end in zip(gradients, (ends[0], ends[1], ends[1]), strict=True))


def test_nan_in_one_sequence_stays_there(isa, dtype):
    problem = Packed(((9, 9), (20, 20), (4, 4)), dtype=dtype)
    tensors = problem.build()
    clean = call(problem, *tensors)
    for t in tensors:
        t[9:29] = NAN
    out = call(problem, *tensors)
    assert out[9:29].isnan().all()
    assert torch.equal(out[:9], clean[:9]) and torch.equal(out[29:], clean[29:])


def test_query_of_a_sequence_without_keys_is_zero_and_its_dout_ignored(isa, dtype):
    problem = Packed(((5, 0), (4, 6)), dtype=dtype)
    leaves = [t.requires_grad_() for t in problem.build()]
    out, lse = call(problem, *leaves, return_lse=True)
    assert (out[:5] == 0).all() and (lse[:, :5] == -INF).all()
    dout = torch.randn_like(out)
    dout[:5] = NAN
    gradients = torch.autograd.grad(out, leaves, dout)
    assert all(torch.isfinite(g).all() for g in gradients) and (gradients[0][:5] == 0).all()


@pytest.mark.parametrize(("max_seqlen_q", "max_seqlen_k"), [(64, 71), (1000, 70), (100_000, 100_000)])
def test_more_room_than_needed_changes_nothing(isa, max_seqlen_q, max_seqlen_k):
    q, k, v = MIXED.build()
    got = crossmodal.attention_varlen(q, k, v, *MIXED.cu_seqlens, max_seqlen_q, max_seqlen_k, return_lse=True)
    torch.testing.assert_close(got, call(MIXED, q, k, v, return_lse=True))


# As nobody may read them: (cu_seqlens_q, cu_seqlens_k) and what they are taken for, with max_seqlen 4 and 5.
UNREADABLE = {
    "descending": (([0, 4, 2, 6], [0, 5, 1, 9]), [(0, 4), (4, 4), (4, 6)], [(0, 5), (5, 5), (5, 9)]),
    "beyond the end": (([0, 3, 900, 901], [0, 5, 901, 902]), [(0, 3), (3, 7), (9, 9)], [(0, 5), (5, 10), (11, 11)]),
    "negative": (([-7, 2, 4, 6], [-8, -7, 4, 9]), [(0, 2), (2, 4), (4, 6)], [(0, 0), (0, 4), (4, 9)]),
    "late start": (([2, 4, 5, 6], [3, 5, 6, 9]), [(2, 4), (4, 5), (5, 6)], [(3, 5), (5, 6), (6, 9)]),
    "longer than max_seqlen": (([0, 7, 8, 9], [0, 9, 10, 11]), [(0, 4), (7, 8), (8, 9)], [(0, 5), (9, 10), (10, 11)]),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_offsets_that_cannot_be_read_are_clamped(name):
    torch._dynamo.reset()
    ends, rows, keys = UNREADABLE[name]
    q, k, v = torch.randn(9, 2, 8), torch.randn(11, 2, 8), torch.randn(11, 2, 6)
    compiled = torch.compile(
        lambda *x: crossmodal.attention_varlen(*x, 4, 5, return_lse=True), fullgraph=True, backend="aot_eager"
    )
    out, lse = compiled(q, k, v, *(torch.tensor(e, dtype=torch.int32) for e in ends))
    wanted_out, wanted_lse = torch.zeros(9, 2, 6), torch.full((2, 9), -INF)
    for (a, b), (c, d) in zip(rows, keys, strict=True):
        part = [t.transpose(0, 1)[None] for t in (q[a:b], k[c:d], v[c:d])]
        found = crossmodal.attention(*part, return_lse=True)
        wanted_out[a:b], wanted_lse[:, a:b] = found[0][0].transpose(0, 1), found[1][0]
    torch.testing.assert_close((out, lse), (wanted_out, wanted_lse))


def test_lse_is_float32_beside_bfloat16_and_float64_beside_float64(dtype):
    out, lse = call(SMALL, *replace(SMALL, dtype=dtype).build(), return_lse=True)
    assert out.dtype == dtype and out.shape == (9, 4, 8)
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and lse.shape == (4, 9)


def test_one_tensor_as_query_key_and_value_gets_every_gradient():
    problem = Packed(((5, 5), (2, 2)))
    x = torch.randn(7, 2, 8, requires_grad=True)
    copies = [x.detach().clone().requires_grad_() for _ in range(3)]
    got = torch.autograd.grad(call(problem, x, x, x).square().sum(), x)[0]
    wanted = torch.autograd.grad(call(problem, *copies).square().sum(), copies)
    torch.testing.assert_close(got, sum(wanted))


def test_passes_gradcheck(isa):
    problem = replace(SMALL, dtype=torch.float64, heads=4, heads_k=2, head_dim=3, head_dim_v=2)
    sink = torch.randn(4, dtype=torch.float64, requires_grad=True)
    leaves = [*(t.requires_grad_() for t in problem.build()), sink]
    ends, maxima = problem.cu_seqlens, problem.max_seqlens

    def attention(q, k, v, sink):
        options = {"is_causal": True, "causal_align": "lower_right", "sink": sink, "softcap": 2.0}
        out, lse = crossmodal.attention_varlen(q, k, v, *ends, *maxima, enable_gqa=True, return_lse=True, **options)
        return out, lse[:, : ends[0][-1]]

    assert torch.autograd.gradcheck(attention, leaves)


def test_passes_gradgradcheck():
    problem = replace(SMALL, dtype=torch.float64, heads=1, heads_k=1, head_dim=2, head_dim_v=2)
    assert torch.autograd.gradgradcheck(lambda *x: call(problem, *x), [t.requires_grad_() for t in problem.build()])


@pytest.mark.filterwarnings("ignore")
def test_forward_mode_agrees_with_the_reference():
    q, k, v = SMALL.build()
    tangent = torch.randn_like(q)
    arguments = (k, v, *SMALL.cu_seqlens, *SMALL.max_seqlens)
    got, wanted = (
        torch.func.jvp(lambda x, m=m: m.attention_varlen(x, *arguments), (q,), (tangent,))[1]
        for m in (crossmodal, crossmodal.reference)
    )
    torch.testing.assert_close(got, wanted)
    assert (got != 0).any()


@pytest.mark.filterwarnings("ignore")
def test_vmap_agrees_with_a_loop():
    q, k, v = (torch.stack([t, t.flip(0), t + 1]) for t in SMALL.build())
    ends = [torch.stack([end, end.flip(0)[0] - end.flip(0), end]) for end in SMALL.cu_seqlens]

    def attention(*x):
        return crossmodal.attention_varlen(*x, *SMALL.max_seqlens)

    got = torch.func.vmap(attention)(q, k, v, *ends)
    wanted = torch.stack([attention(*x) for x in zip(q, k, v, *ends, strict=True)])
    torch.testing.assert_close(got, wanted)


def test_autocast_runs_in_the_autocast_dtype():
    q, k, v = SMALL.build()
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = call(SMALL, q, k, v, return_lse=True)
        assert call(SMALL, q.double(), k.double(), v.double()).dtype == torch.float64
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
