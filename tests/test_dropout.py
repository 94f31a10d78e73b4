"""Dropout: the mask of a seed, whatever computes it; what is dropped and what is not."""

import pytest
import torch

import crossmodal
from crossmodal import Source, reference
from crossmodal.reference._dropout import dropout_keep

Q, K = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 70, 8)
SEED = torch.tensor([7])
SEEDS = [0, 1, -1, 2**63 - 1, -(2**63), 0x1234567890ABCDEF]


def kept_by_the_operator(seed, p, *, batch=2, heads=3, rows=130, keys=70, sources=None, **options):
    """(batch, heads, rows, keys): which weights reach the output, read off unit vectors as values."""
    query, unit = torch.zeros(batch, heads, rows, 1), torch.eye(keys).expand(batch, heads, keys, keys)
    if sources is None:
        key = torch.zeros(batch, heads, keys, 1)
        return crossmodal.attention(query, key, unit, dropout_p=p, dropout_seed=seed, **options) != 0
    parts = [Source(torch.zeros(batch, heads, n, 1), v) for n, v in zip(sources, unit.split(sources, 2), strict=True)]
    return crossmodal.fuse(query, parts, dropout_p=p, dropout_seed=seed, **options).out != 0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rows", [1, 130], ids=["few_queries", "many_queries"])
def test_mask_is_that_of_the_formula(isa, seed, rows):
    seed = torch.tensor([seed])
    wanted = dropout_keep(seed, 0.3, 2, 3, rows, 70)
    assert torch.equal(kept_by_the_operator(seed, 0.3, rows=rows), wanted)


@pytest.mark.parametrize("keys", [1, 3, 64, 65, 600])
def test_mask_does_not_depend_on_the_chunk_of_keys(isa, keys):
    wanted = dropout_keep(SEED, 0.5, 1, 1, 9, keys)
    assert torch.equal(kept_by_the_operator(SEED, 0.5, batch=1, heads=1, rows=9, keys=keys), wanted)


def test_keys_count_along_the_padded_concatenation(isa):
    whole = kept_by_the_operator(SEED, 0.5)
    assert torch.equal(kept_by_the_operator(SEED, 0.5, sources=[13, 50, 7]), whole)


def test_hidden_keys_keep_their_place(isa):
    """A mask with holes moves no draw of the keys that are left."""
    mask = torch.arange(70) % 3 != 1
    whole = kept_by_the_operator(SEED, 0.5)
    assert torch.equal(kept_by_the_operator(SEED, 0.5, attn_mask=mask.expand(130, 70)), whole & mask)
    key_mask = mask.view(1, 1, 1, 70)
    assert torch.equal(kept_by_the_operator(SEED, 0.5, attn_mask=key_mask), whole & mask)


def test_mask_does_not_depend_on_the_number_of_threads():
    before = torch.get_num_threads()
    try:
        masks = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            masks.append(kept_by_the_operator(SEED, 0.4))
        assert torch.equal(*masks)
    finally:
        torch.set_num_threads(before)


def test_compiled_call_draws_the_same_mask():
    torch._dynamo.reset()

    def call(q, seed):
        return crossmodal.attention(q, K, K, dropout_p=0.5, dropout_seed=seed)

    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(Q, SEED), call(Q, SEED))


def test_packed_rows_count_from_the_start_of_their_sequence(isa):
    cu_q, cu_k = torch.tensor([0, 5, 12], dtype=torch.int32), torch.tensor([0, 9, 16], dtype=torch.int32)
    unit = torch.zeros(16, 3, 9)
    unit[:9] = torch.eye(9)[:, None]
    unit[9:, :, :7] = torch.eye(7)[:, None]
    out = crossmodal.attention_varlen(
        torch.zeros(12, 3, 1), torch.zeros(16, 3, 1), unit, cu_q, cu_k, 7, 9, dropout_p=0.5, dropout_seed=SEED
    )
    wanted = dropout_keep(SEED, 0.5, 2, 3, 7, 9)
    assert torch.equal(out[:5] != 0, wanted[0, :, :5].transpose(0, 1))
    assert torch.equal(out[5:, :, :7] != 0, wanted[1, :, :, :7].transpose(0, 1))


def test_one_seed_repeats_and_another_differs():
    first, again = (crossmodal.attention(Q, K, K, dropout_p=0.5, dropout_seed=SEED) for _ in range(2))
    other = crossmodal.attention(Q, K, K, dropout_p=0.5, dropout_seed=SEED + 1)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_without_a_seed_it_is_drawn_from_torch():
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(crossmodal.attention(Q, K, K, dropout_p=0.5))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_drawn_seed_is_the_one_of_backward():
    """The gradient of a dropped weight's value is zero: forward and backward drop the same."""
    value = torch.eye(70).expand(2, 4, 70, 70).clone().requires_grad_()
    out = crossmodal.attention(Q, K, value, dropout_p=0.5)
    (gradient,) = torch.autograd.grad(out.diagonal(dim1=2, dim2=3).sum(), value)
    assert torch.equal(gradient.diagonal(dim1=2, dim2=3)[..., :5] != 0, out.diagonal(dim1=2, dim2=3) != 0)


def test_mean_is_kept():
    value = torch.ones(1, 1, 64, 1)
    out = crossmodal.attention(torch.zeros(1, 1, 512, 4), torch.zeros(1, 1, 64, 4), value, dropout_p=0.25)
    # 32,768 draws: the mean of kept / (1 - p) has a standard deviation of 0.0032.
    assert abs(out.mean().item() - 1) < 0.016


def test_everything_dropped_is_zero_with_gradient_zero(isa):
    q = Q.clone().requires_grad_()
    out = crossmodal.attention(q, K, K, dropout_p=1.0)
    assert (out == 0).all() and (torch.autograd.grad(out.sum(), q)[0] == 0).all()


def test_lse_and_mass_are_those_before_dropout(isa):
    sources = [Source(K, K), Source(K[:, :, :9], K[:, :, :9])]
    clean = crossmodal.fuse(Q, sources, return_lse=True, return_mass=True)
    dropped = crossmodal.fuse(Q, sources, dropout_p=0.7, dropout_seed=SEED, return_lse=True, return_mass=True)
    assert torch.equal(clean.lse, dropped.lse) and torch.equal(clean.mass, dropped.mass)


@pytest.mark.parametrize("keys", [70, 600], ids=["one chunk", "several chunks"])
def test_gradients_pass_gradcheck(isa, keys):
    q, k = (torch.randn(1, 2, n, 3, dtype=torch.float64, requires_grad=True) for n in (6, keys))

    def attention(q, k):
        return crossmodal.attention(q, k, k, dropout_p=0.4, dropout_seed=SEED)

    assert torch.autograd.gradcheck(attention, (q, k), fast_mode=keys > 100)
    got, wanted = (m.attention(q, k, k, dropout_p=0.4, dropout_seed=SEED) for m in (crossmodal, reference))
    torch.testing.assert_close(got, wanted)
