"""MultiheadAttention stands in the place of torch's: outputs, weights, every gradient, checkpoints."""

import copy
import inspect
import io
import itertools

import pytest
import torch
from torch import nn

import crossmodal
from crossmodal.nn import _padding, _products, multihead_attention
from tests.problems import FeatureOrder
from tests.tolerance import assert_as_accurate, eps_of, judge_by_orders

EMBED, HEADS, BATCH, SEQLEN_Q, SEQLEN_K = 24, 4, 3, 5, 7

CONSTRUCTORS = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "no bias": {"bias": False},
    "other features": {"kdim": 10, "vdim": 14},
    "bias_kv": {"add_bias_kv": True, "batch_first": True},
    "zero_attn": {"add_zero_attn": True},
    "everything": {"kdim": 10, "vdim": 14, "add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
}
MASKS = ["none", "padding", "float padding", "mask", "float mask", "mask of each head", "mask and padding", "causal"]
INPUTS = ["self", "cross", "three", "unbatched"]


def pair(dtype=torch.float32, **constructor):
    """torch's module in float64 and in ``dtype``, and ours, of the same weights."""
    exact = nn.MultiheadAttention(EMBED, HEADS, dtype=torch.float64, **constructor)
    for parameter in exact.parameters():  # biases too: torch starts them at zero
        nn.init.normal_(parameter, std=EMBED**-0.5)  # projected features are about as large as features
    theirs = nn.MultiheadAttention(EMBED, HEADS, dtype=dtype, **constructor)
    theirs.load_state_dict(exact.state_dict())
    exact.load_state_dict(theirs.state_dict())  # rounded as the others are
    ours = crossmodal.nn.MultiheadAttention(EMBED, HEADS, dtype=dtype, **constructor)
    ours.load_state_dict(theirs.state_dict())
    return exact, theirs, ours


def inputs_of(kind, module):
    """query, key, value in float64, and the batch."""
    if kind == "unbatched":
        return [torch.randn(n, w) for n, w in zip((SEQLEN_Q, SEQLEN_K, SEQLEN_K), widths(module), strict=True)]
    query, key, value = (
        torch.randn((BATCH, n, w) if module.batch_first else (n, BATCH, w))
        for n, w in zip((SEQLEN_Q, SEQLEN_K, SEQLEN_K), widths(module), strict=True)
    )
    if kind == "self":
        return [query]
    return [query, key] if kind == "cross" else [query, key, value]


def widths(module):
    return module.embed_dim, module.kdim, module.vdim


def masks_of(kind, inputs):
    """Keyword arguments of forward; every query sees a key, since torch gives NaN otherwise."""
    seqlen_q = SEQLEN_Q
    seqlen_k = SEQLEN_Q if inputs == "self" else SEQLEN_K
    batch = (BATCH,) if inputs != "unbatched" else ()
    of_heads = (HEADS * (BATCH if batch else 1), seqlen_q, seqlen_k)
    padding = torch.rand(*batch, seqlen_k) < 0.4
    mask = torch.rand(seqlen_q, seqlen_k) < 0.4
    each = torch.rand(of_heads) < 0.4
    padding[..., 0] = mask[:, 0] = each[..., 0] = False
    return {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "float padding": {"key_padding_mask": torch.randn(*batch, seqlen_k)},
        "mask": {"attn_mask": mask},
        "float mask": {"attn_mask": torch.randn(seqlen_q, seqlen_k)},
        "mask of each head": {"attn_mask": each},
        "mask and padding": {"attn_mask": mask, "key_padding_mask": padding},
        "causal": {"attn_mask": torch.ones(seqlen_q, seqlen_k, dtype=torch.bool).triu(1), "is_causal": True},
    }[kind]


def torch_is_right(constructor, masks, need_weights):
    """It hides added tokens from early queries: test_tokens_that_are_added_are_seen_beside_a_causal_hint."""
    adds = any(name.startswith("add") for name in CONSTRUCTORS[constructor])
    return not (adds and masks == "causal" and not need_weights)


def cast(tensors, dtype):
    return {n: t.to(dtype) if torch.is_tensor(t) and t.is_floating_point() else t for n, t in tensors.items()}


def results(module, inputs, masks, dtype, **options):
    """Outputs by name, and the gradient of every leaf."""
    leaves = [t.to(dtype).requires_grad_() for t in inputs]
    query, key, value = {1: leaves * 3, 2: [leaves[0], leaves[-1], leaves[-1]], 3: leaves}[len(leaves)]
    out, weights = module(query, key, value, **cast(masks, dtype), **options)
    found = {"out": out} if weights is None else {"out": out, "weights": weights}
    generator = torch.Generator().manual_seed(1)
    loss = sum((t * torch.randn(t.shape, generator=generator).to(dtype)).sum() for t in found.values())
    parameters = dict(module.named_parameters())
    names = [*[f"input {i}" for i in range(len(leaves))], *parameters]
    gradients = torch.autograd.grad(loss, [*leaves, *parameters.values()])
    return {**{n: t.detach() for n, t in found.items()}, **dict(zip(names, gradients, strict=True))}


def reordered_results(order, module, inputs, masks, dtype, **options):
    """The same by a module that adds up the features in another order."""
    columns = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    other = copy.deepcopy(module)
    other.load_state_dict({n: order.apply(t) if n in columns else t for n, t in module.state_dict().items()})
    found = results(other, [order.apply(t) for t in inputs], masks, dtype, **options)
    return {n: order.undo_one(t) if n in columns or n.startswith("input") else t for n, t in found.items()}


def assert_stands_in(modules, inputs, masks, dtype=torch.float32, **options):
    exact, theirs, ours = modules
    wide = [t.to(dtype).double() for t in inputs]
    wanted = results(exact, wide, cast(cast(masks, dtype), torch.float64), torch.float64, **options)
    got = results(ours, inputs, masks, dtype, **options)
    assert got.keys() == wanted.keys()

    def judge(references):
        for name, tensor in got.items():
            assert_as_accurate(name, tensor, [r[name] for r in references], wanted[name].numpy(), eps_of(dtype))

    def in_order(number):
        return reordered_results(FeatureOrder(number), theirs, inputs, masks, dtype, **options)

    judge_by_orders(judge, results(theirs, inputs, masks, dtype, **options), in_order)


CASES = [
    (constructor, inputs, masks, need_weights)
    for constructor, inputs, masks, need_weights in itertools.product(CONSTRUCTORS, INPUTS, MASKS, (False, True))
    if not ("kdim" in CONSTRUCTORS[constructor] and inputs in ("self", "cross"))
    and torch_is_right(constructor, masks, need_weights)
]


@pytest.mark.parametrize(("constructor", "inputs", "masks", "need_weights"), CASES)
@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_outputs_weights_and_gradients_are_as_accurate_as_torchs(constructor, inputs, masks, need_weights):
    modules = pair(**CONSTRUCTORS[constructor])
    assert_stands_in(modules, inputs_of(inputs, modules[0]), masks_of(masks, inputs), need_weights=need_weights)


@pytest.fixture
def as_if_large(monkeypatch):
    """Takes the ways of large problems: products through oneDNN, rows of padding left out."""
    monkeypatch.setattr(_products, "WORTHWHILE", 0)
    monkeypatch.setattr(_padding, "WORTHWHILE", 0)
    monkeypatch.setenv("CROSSMODAL_LINEAR", "onednn")


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("masks", ["none", "padding", "mask and padding", "causal"])
@pytest.mark.parametrize("constructor", ["plain", "batch_first", "no bias", "other features", "bias_kv"])
def test_the_ways_of_large_problems_are_as_accurate_as_torch(constructor, inputs, masks, as_if_large):
    modules = pair(**CONSTRUCTORS[constructor])
    if modules[0].kdim != EMBED and inputs in ("self", "cross"):
        inputs = "three"
    masks = "mask" if not torch_is_right(constructor, masks, False) else masks
    assert_stands_in(modules, inputs_of(inputs, modules[0]), masks_of(masks, inputs), need_weights=False)


@pytest.mark.parametrize("batch_first", [False, True])
def test_rows_of_padding_are_not_projected(batch_first, as_if_large, monkeypatch):
    module = crossmodal.nn.MultiheadAttention(EMBED, HEADS, batch_first=batch_first)
    rows = []
    monkeypatch.setattr(
        multihead_attention,
        "linear",
        lambda x, *a: rows.append(x.numel() // EMBED) or torch.nn.functional.linear(x, *a),
    )
    query, key = torch.randn(2, 5, EMBED), torch.randn(2, 7, EMBED)
    padding = torch.arange(7) >= torch.tensor([[4], [0]])
    if not batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    module(query, key, key, key_padding_mask=padding, need_weights=False)
    assert rows == [10, 4, 10]  # queries, keys with values, outputs


def test_padding_of_large_problems_may_hold_nan(as_if_large):
    module = crossmodal.nn.MultiheadAttention(EMBED, HEADS, batch_first=True)
    query, key = torch.randn(2, SEQLEN_Q, EMBED), torch.randn(2, SEQLEN_K, EMBED)
    padding = torch.arange(SEQLEN_K) >= torch.tensor([[4], [0]])
    key[padding] = torch.nan
    key.requires_grad_()
    out, _ = module(query, key, key, key_padding_mask=padding, need_weights=False)
    torch.testing.assert_close(out[1], module.out_proj.bias.expand(SEQLEN_Q, -1))
    (gradient,) = torch.autograd.grad(out.sum(), key)
    assert out.isfinite().all() and gradient.isfinite().all() and not gradient[padding].any()


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("masks", ["none", "padding", "float mask"])
def test_weights_of_each_head_are_as_accurate_as_torchs(inputs, masks):
    modules = pair(add_bias_kv=True)
    assert_stands_in(modules, inputs_of(inputs, modules[0]), masks_of(masks, inputs), average_attn_weights=False)


@pytest.mark.parametrize("need_weights", [False, True], ids=["", "weights"])
@pytest.mark.parametrize("inputs", ["self", "cross"])
def test_every_dtype_is_as_accurate_as_torch(dtype, inputs, need_weights):
    modules = pair(dtype, batch_first=True)
    assert_stands_in(
        modules, inputs_of(inputs, modules[0]), masks_of("padding", inputs), dtype, need_weights=need_weights
    )


@pytest.mark.parametrize("inputs", ["self", "cross"])
def test_answering_gives_what_torch_gives_by_its_own_fused_path(inputs):
    exact, theirs, ours = (m.eval() for m in pair(batch_first=True))
    tensors = inputs_of(inputs, exact)
    tensors = [tensors[0], tensors[-1], tensors[-1]] if inputs == "cross" else tensors * 3
    masks = masks_of("padding", inputs)
    with torch.no_grad():
        wanted = exact(*(t.double() for t in tensors), **masks)
        reference, got = (module(*tensors, **masks) for module in (theirs, ours))
    for name, g, r, w in zip(("out", "weights"), got, reference, wanted, strict=True):
        assert_as_accurate(name, g, [r], w.numpy(), eps_of(torch.float32))


def test_constructor_and_forward_have_torchs_signatures():
    for name in ("__init__", "forward"):
        ours, theirs = (getattr(m, name) for m in (crossmodal.nn.MultiheadAttention, nn.MultiheadAttention))
        assert [str(p) for p in inspect.signature(ours).parameters.values()] == [
            str(p) for p in inspect.signature(theirs).parameters.values()
        ]


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
def test_checkpoints_go_both_ways(constructor):
    theirs = nn.MultiheadAttention(EMBED, HEADS, **CONSTRUCTORS[constructor])
    ours = crossmodal.nn.MultiheadAttention(EMBED, HEADS, **CONSTRUCTORS[constructor])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [tuple(t.shape) for t in ours.state_dict().values()] == [
        tuple(t.shape) for t in theirs.state_dict().values()
    ]
    ours.load_state_dict(theirs.state_dict())
    nn.MultiheadAttention(EMBED, HEADS, **CONSTRUCTORS[constructor]).load_state_dict(ours.state_dict())


def test_same_seed_gives_the_weights_that_torch_starts_with():
    torch.manual_seed(3)
    theirs = nn.MultiheadAttention(EMBED, HEADS, add_bias_kv=True)
    torch.manual_seed(3)
    ours = crossmodal.nn.MultiheadAttention(EMBED, HEADS, add_bias_kv=True)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def through_pickle(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("clone", [copy.deepcopy, through_pickle], ids=["deepcopy", "pickle"])
def test_copies_give_the_same_bits(clone):
    module = crossmodal.nn.MultiheadAttention(EMBED, HEADS)
    query = torch.randn(SEQLEN_Q, BATCH, EMBED)
    wanted = module(query, query, query)
    for got, there in zip(clone(module)(query, query, query), wanted, strict=True):
        assert torch.equal(got, there)


def test_weights_changed_after_a_call_count_in_the_next():
    """Also by a way that torch's version counter does not see."""
    module = crossmodal.nn.MultiheadAttention(256, 4).eval()
    query = torch.randn(64, 8, 256)
    with torch.no_grad():
        module(query, query, query)
        module.in_proj_weight.data.mul_(2)
        module.out_proj.weight.data.neg_()
        wanted = nn.MultiheadAttention(256, 4).eval()
        wanted.load_state_dict(module.state_dict())
        torch.testing.assert_close(module(query, query, query)[0], wanted(query, query, query)[0])


def test_output_without_batch_first_is_contiguous_as_torchs_is():
    module = crossmodal.nn.MultiheadAttention(EMBED, HEADS)
    query = torch.randn(SEQLEN_Q, BATCH, EMBED)
    assert module(query, query, query)[0].is_contiguous()


def test_query_whose_keys_are_all_padding_gets_the_bias_alone():
    _, theirs, ours = pair(batch_first=True)
    query = torch.randn(2, SEQLEN_Q, EMBED, requires_grad=True)
    padding = torch.zeros(2, SEQLEN_Q, dtype=torch.bool)
    padding[0] = True
    out, weights = ours(query, query, query, key_padding_mask=padding)
    torch.testing.assert_close(out[0], ours.out_proj.bias.expand(SEQLEN_Q, -1))
    assert not weights[0].any()
    (gradient,) = torch.autograd.grad(out.sum(), query)
    assert not gradient[0].any() and torch.isfinite(gradient).all()
    assert theirs(query, query, query, key_padding_mask=padding)[0][0].isnan().all(), "torch has mended it"


@pytest.mark.parametrize("constructor", ["bias_kv", "zero_attn"])
def test_tokens_that_are_added_are_seen_beside_a_causal_hint(constructor):
    """torch 2.13 hands SDPA the hint and one more key, which is hidden from every query before it."""
    exact, theirs, ours = pair(**CONSTRUCTORS[constructor])
    query, mask = torch.randn(SEQLEN_Q, SEQLEN_Q, EMBED), torch.ones(SEQLEN_Q, SEQLEN_Q, dtype=torch.bool).triu(1)
    wanted = exact(*[query.double()] * 3, attn_mask=mask)[0].detach()
    reference = theirs(query, query, query, attn_mask=mask)[0]
    hinted = [m(query, query, query, attn_mask=mask, is_causal=True, need_weights=False)[0] for m in (theirs, ours)]
    assert_as_accurate("out", hinted[1].detach(), [reference.detach()], wanted.numpy(), eps_of(torch.float32))
    assert not torch.allclose(hinted[0], reference), "torch has mended it"


def test_padding_may_hold_nan():
    ours = pair(batch_first=True)[2]
    query, key = torch.randn(2, SEQLEN_Q, EMBED), torch.randn(2, SEQLEN_K, EMBED)
    padding = torch.zeros(2, SEQLEN_K, dtype=torch.bool)
    padding[:, 4:] = True
    wanted = ours(query, key, key, key_padding_mask=padding)
    key[:, 4:] = torch.nan
    for got, there in zip(ours(query, key, key, key_padding_mask=padding), wanted, strict=True):
        assert torch.equal(got, there)


def test_dropout_drops_in_training_alone_and_repeats_with_the_seed():
    module = crossmodal.nn.MultiheadAttention(EMBED, HEADS, dropout=0.5)
    query = torch.randn(SEQLEN_Q, BATCH, EMBED)

    def call():
        torch.manual_seed(5)
        return module(query, query, query, need_weights=False)[0]

    assert torch.equal(call(), call())
    dropped = call()
    module.eval()
    assert not torch.equal(call(), dropped)
    without = crossmodal.nn.MultiheadAttention(EMBED, HEADS)
    without.load_state_dict(module.state_dict())
    assert torch.equal(call(), without(query, query, query, need_weights=False)[0])


def test_autocast_gives_what_torch_gives():
    exact, theirs, ours = pair(batch_first=True)
    query = torch.randn(BATCH, SEQLEN_Q, EMBED)
    wanted = exact(*[query.double()] * 3)
    with torch.autocast("cpu", torch.bfloat16):
        reference, got = theirs(query, query, query), ours(query, query, query)
    for name, g, r, w in zip(("out", "weights"), got, reference, wanted, strict=True):
        assert_as_accurate(name, g.detach(), [r], w.detach().numpy(), eps_of(torch.bfloat16))


Q, K = torch.randn(SEQLEN_Q, BATCH, EMBED), torch.randn(SEQLEN_K, BATCH, EMBED)
BAD = {
    "dimensions of query": ((Q[None], K, K), {}, ValueError, "query must have 3 dimensions"),
    "dimensions of key": ((Q, K[0], K), {}, ValueError, "key must have query's 3 dimensions, got 2"),
    "features": ((Q, K[..., :5], K), {}, ValueError, "key must have 24 features, got 5"),
    "length of value": (
        (Q, K, K[:3]),
        {},
        ValueError,
        r"value must have key's batch and length \(7, 3\), got \(3, 3\)",
    ),
    "batch": ((Q[:, :2], K, K), {}, ValueError, "key must have query's batch 2, got 3"),
    "type of key": ((Q, None, K), {}, TypeError, "key must be a torch.Tensor, got NoneType"),
    "padding": ((Q, K, K), {"key_padding_mask": torch.zeros(7, 3).bool()}, ValueError, r"\(3, 7\), got \(7, 3\)"),
    "mask": ((Q, K, K), {"attn_mask": torch.zeros(3, 5, 7).bool()}, ValueError, r"\(12, 5, 7\), got \(3, 5, 7\)"),
    "dtype of mask": (
        (Q, K, K),
        {"attn_mask": torch.zeros(5, 7).int()},
        TypeError,
        "attn_mask must be bool .* got torch.int32",
    ),
    "hint alone": ((Q, K, K), {"is_causal": True}, ValueError, "attn_mask must be given beside is_causal"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    arguments, options, error, message = BAD[name]
    with pytest.raises(error, match=message):
        crossmodal.nn.MultiheadAttention(EMBED, HEADS)(*arguments, **options)


@pytest.mark.parametrize("batch_first", [False, True])
def test_no_sequence_and_no_batch_give_nothing(batch_first):
    module = crossmodal.nn.MultiheadAttention(EMBED, HEADS, batch_first=batch_first)
    for shape in ((0, BATCH, EMBED), (BATCH, 0, EMBED)):
        out, weights = module(*[torch.randn(shape)] * 3)
        assert out.shape == shape and weights.numel() == 0
