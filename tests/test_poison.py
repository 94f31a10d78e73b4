"""What is hidden may hold NaN or Inf; what is visible and NaN is seen."""

import pytest
import torch

import crossmodal
from crossmodal import Source, masks

NAN, INF = float("nan"), float("inf")


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=lambda d: str(d)[6:])
def dtype(request):
    return request.param


@pytest.fixture(params=[2, 40], ids=["few_queries", "many_queries"])
def qkv(request, dtype):
    torch.manual_seed(0)
    shapes = [(2, 3, request.param, 20), (2, 3, 33, 20), (2, 3, 33, 12)]
    return [torch.randn(shape).to(dtype) for shape in shapes]


def run(q, k, v, **options):
    """Output and the gradients of query, key and value."""
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    out = crossmodal.attention(*leaves, **options)
    torch.manual_seed(1)
    return [out.detach(), *torch.autograd.grad(out, leaves, torch.randn(out.shape).to(out.dtype))]


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
def test_keys_behind_the_length_change_nothing(isa, qkv, poison):
    q, k, v = qkv
    lengths = torch.tensor([20, 33])
    clean = run(q, k, v, key_lengths=lengths)
    k, v = k.clone(), v.clone()
    k[0, :, 20:] = v[0, :, 20:] = poison
    for got, wanted in zip(run(q, k, v, key_lengths=lengths), clean, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("form", ["bool", "float"])
def test_keys_behind_a_key_mask_change_nothing(isa, qkv, form):
    q, k, v = qkv
    keep = torch.arange(33) % 3 != 1
    mask = masks.key_padding(keep.expand(2, 33))
    if form == "float":
        mask = torch.zeros(2, 1, 1, 33).masked_fill(~mask, -INF)
    clean = run(q, k, v, attn_mask=mask)
    k, v = k.clone(), v.clone()
    k[:, :, ~keep] = v[:, :, ~keep] = NAN
    for got, wanted in zip(run(q, k, v, attn_mask=mask), clean, strict=True):
        assert torch.equal(got, wanted)


def test_gradient_of_a_hidden_key_is_zero(isa, qkv):
    q, k, v = qkv
    _, _, dk, dv = run(q, k, v, key_lengths=torch.tensor([20, 33]))
    assert (dk[0, :, 20:] == 0).all() and (dv[0, :, 20:] == 0).all()


def test_missing_modality_is_zero_and_gets_no_gradient(isa, qkv):
    q, k, v = qkv
    k, v = torch.full_like(k, NAN), torch.full_like(v, NAN)
    out, *gradients = run(q, k, v, key_lengths=torch.tensor([0, 0]))
    assert all((t == 0).all() for t in (out, *gradients))


def test_fully_masked_row_is_zero_and_its_dout_ignored(isa, qkv):
    q, k, v = (t.detach().requires_grad_() for t in qkv)
    mask = torch.ones(q.shape[2], 33, dtype=torch.bool)
    mask[1] = False
    out, lse = crossmodal.attention(q, k, v, mask, return_lse=True)
    assert (out[:, :, 1] == 0).all() and (lse[:, :, 1] == -INF).all()
    dout, dlse = torch.randn_like(out), torch.randn_like(lse)
    clean = torch.autograd.grad((out, lse), (q, k, v), (dout, dlse), retain_graph=True)
    dout[:, :, 1], dlse[:, :, 1] = NAN, NAN
    for got, wanted in zip(torch.autograd.grad((out, lse), (q, k, v), (dout, dlse)), clean, strict=True):
        assert torch.equal(got, wanted)
    assert (clean[0][:, :, 1] == 0).all()


def test_nan_key_does_not_reach_queries_that_do_not_see_it(isa, qkv):
    q, k, v = qkv
    mask = torch.ones(q.shape[2], 33, dtype=torch.bool)
    mask[0, 7] = False
    clean_out, clean_dq, _, _ = run(q, k, v, attn_mask=mask)
    k = k.clone()
    k[:, :, 7] = NAN
    out, dq, _, _ = run(q, k, v, attn_mask=mask)
    assert torch.equal(out[:, :, 0], clean_out[:, :, 0]) and torch.equal(dq[:, :, 0], clean_dq[:, :, 0])


@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_visible_nan_is_not_lost(isa, qkv, where):
    tensors = [t.clone() for t in qkv]
    tensors[["query", "key", "value"].index(where)][0, 0, 1, 3] = NAN
    out = crossmodal.attention(*tensors)
    assert out[0, 0, 1].isnan().any()
    assert torch.isfinite(out[1]).all()


def test_lowest_finite_number_in_a_mask_is_a_score(isa, qkv):
    q, k, v = qkv
    mask = torch.zeros(q.shape[2], 33)
    mask[0] = torch.finfo(torch.float32).min
    out, dq, dk, dv = run(q, k, v, attn_mask=mask)
    # Adding the same huge number to every score swallows them: all keys weigh the same.
    mean = v.double().mean(dim=2)
    assert (out[:, :, 0].double() - mean).abs().max() <= 4 * torch.finfo(q.dtype).eps * v.abs().max()
    assert all(torch.isfinite(t).all() for t in (dq, dk, dv))


def test_mass_of_a_missing_modality_is_zero(isa, qkv):
    q, k, v = qkv
    broken = torch.full_like(k, NAN), torch.full_like(v, NAN)
    result = crossmodal.fuse(q, [Source(k, v), Source(*broken, lengths=torch.tensor([0, 0])), None], return_mass=True)
    assert result.mass.shape[-1] == 3
    assert (result.mass[..., 1:] == 0).all()
    assert torch.allclose(result.mass.sum(-1), torch.ones(()).to(result.mass.dtype))


def test_no_source_at_all_gives_zeros(qkv):
    q, _, _ = qkv
    q = q.detach().requires_grad_()
    result = crossmodal.fuse(q, [None, None], return_lse=True, return_mass=True)
    assert result.out.shape == q.shape and (result.out == 0).all()
    assert (result.lse == -INF).all() and (result.mass == 0).all() and result.mass.shape[-1] == 2
    assert (torch.autograd.grad(result.out.sum(), q)[0] == 0).all()


def test_skipped_values_of_a_weighted_sum_may_be_nan(isa, dtype):
    weights, values = torch.rand(2, 1, 5, 9).to(dtype), torch.randn(2, 1, 9, 6).to(dtype)
    lengths = torch.tensor([4, 9])
    clean = crossmodal.weighted_sum(weights, values, lengths=lengths)
    weights, values = weights.clone(), values.clone()
    weights[0, :, :, 4:], values[0, :, 4:] = NAN, INF
    weights.requires_grad_(), values.requires_grad_()
    out = crossmodal.weighted_sum(weights, values, lengths=lengths)
    assert torch.equal(out, clean)
    dweights, dvalues = torch.autograd.grad(out.sum(), (weights, values))
    assert (dweights[0, :, :, 4:] == 0).all() and (dvalues[0, :, 4:] == 0).all()
    assert torch.isfinite(dweights).all() and torch.isfinite(dvalues).all()


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
def test_queries_beyond_their_length_and_their_dout_change_nothing(isa, qkv, poison):
    q, k, v = qkv
    lengths = torch.tensor([q.shape[2], 1])

    def results(query, filled):
        leaves = [t.detach().requires_grad_() for t in (query, k, v)]
        source = Source(leaves[1], leaves[2])
        result = crossmodal.fuse(leaves[0], [source], query_lengths=lengths, return_lse=True, return_mass=True)
        torch.manual_seed(1)
        cotangents = [torch.randn(t.shape).to(t.dtype) for t in result]
        for cotangent in cotangents:
            cotangent[1, :, 1:] = filled
        return [*result, *torch.autograd.grad(result, leaves, cotangents)]

    clean = results(q, 0.0)
    q = q.clone()
    q[1, :, 1:] = poison
    found = results(q, poison)
    for got, wanted in zip(found, clean, strict=True):
        assert torch.equal(got, wanted)
    out, lse, mass, dq = found[:4]
    assert all((t[1, :, 1:] == 0).all() for t in (out, mass, dq)) and (lse[1, :, 1:] == -INF).all()


ASSOCIATIONS = [*({"reduce": reduce} for reduce in (None, "heads", "keys", "entropy", "mass")), {"topk": 3}]


@pytest.mark.parametrize("options", ASSOCIATIONS, ids=str)
@pytest.mark.parametrize("how", ["lengths", "key mask"])
def test_what_is_hidden_reaches_neither_weights_nor_their_gradients(isa, qkv, options, how):
    q, k, _ = qkv
    keep = (torch.arange(33) < 20).expand(2, 33)
    hidden = {"key_lengths": torch.tensor([20, 20])} if how == "lengths" else {"attn_mask": masks.key_padding(keep)}
    rows = torch.tensor([q.shape[2], 1])

    def results(query, key):
        leaves = [t.detach().requires_grad_() for t in (query, key)]
        found = crossmodal.associate(*leaves, query_lengths=rows, **hidden, **options)
        outputs = list(found) if isinstance(found, tuple) else [found]
        return [*outputs, *torch.autograd.grad(outputs[0].square().sum(), leaves)]

    clean = results(q, k)
    q, k = q.clone(), k.clone()
    q[1, :, 1:], k[:, :, 20:] = NAN, INF
    for got, wanted in zip(results(q, k), clean, strict=True):
        assert torch.equal(got, wanted)
    dq, dk = clean[-2:]
    assert (dq[1, :, 1:] == 0).all() and (dk[:, :, 20:] == 0).all()


def test_gradient_of_associate_ignores_dout_of_rows_that_see_nothing(isa, dtype):
    q, k = torch.randn(2, 3, 6, 8).to(dtype).requires_grad_(), torch.randn(2, 3, 9, 8).to(dtype).requires_grad_()
    mask = torch.ones(6, 9, dtype=torch.bool)
    mask[1] = False
    for options, dim in (({}, 2), ({"reduce": "heads"}, 1), ({"reduce": "entropy"}, 2), ({"reduce": "mass"}, 2)):
        weights = crossmodal.associate(q, k, attn_mask=mask, **options)
        dout = torch.randn_like(weights)
        clean = torch.autograd.grad(weights, (q, k), dout, retain_graph=True)
        dout.select(dim, 1).fill_(NAN)
        for got, wanted in zip(torch.autograd.grad(weights, (q, k), dout), clean, strict=True):
            assert torch.equal(got, wanted), options


def test_minus_infinity_in_a_float_mask_hides_as_false_does(isa, qkv):
    q, k, v = qkv
    keep = torch.rand(q.shape[2], 33) < 0.6
    keep[1] = False
    float_mask = torch.zeros(keep.shape).masked_fill(~keep, -INF)
    got, wanted = (run(q, k, v, attn_mask=mask) for mask in (float_mask, keep))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_gradient_of_a_float_mask_is_finite_and_zero_where_it_hides(isa, qkv):
    q, k, v = qkv
    keep = torch.rand(q.shape[2], 33) < 0.6
    keep[1] = False
    mask = torch.zeros(keep.shape).masked_fill(~keep, -INF).requires_grad_()
    out = crossmodal.attention(q, k, v, mask)
    gradient = torch.autograd.grad(out.double().square().sum(), mask)[0]
    assert torch.isfinite(gradient).all() and (gradient[~keep] == 0).all() and (gradient[keep] != 0).any()


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_query_that_sees_nothing_may_be_nan_where_gradients_are_differentiated_again(qkv, softcap):
    q, k, v = qkv
    mask = torch.ones(q.shape[2], 33, dtype=torch.bool)
    mask[1] = False
    q = q.clone()
    q[:, :, 1] = NAN
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    out = crossmodal.attention(*leaves, mask, softcap=softcap)
    for gradient in torch.autograd.grad(out.sum(), leaves, create_graph=True):
        assert torch.isfinite(gradient).all()
