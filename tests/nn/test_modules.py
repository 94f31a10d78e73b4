"""CrossModalAttention, CrossModalBlock, AttentionPool and the adversary: their formulas, what is missing, copies."""

import copy
import pickle

import pytest
import torch
from torch import nn

import crossmodal
from crossmodal.nn import (
    AttentionPool,
    CrossModalAttention,
    CrossModalBlock,
    ModalityDiscriminator,
    gradient_reversal,
)

WIDTH, HEADS, BATCH = 16, 4, 3
FEATURES = {"image": 10, "audio": 6}
QUERY = torch.randn(BATCH, 5, WIDTH)
SOURCES = {"image": torch.randn(BATCH, 7, 10), "audio": torch.randn(BATCH, 4, 6)}
LENGTHS = {"audio": torch.tensor([4, 0, 2])}


def by_formula(module, query, sources, hidden):
    """The docstring's formula, one query at a time."""
    out = torch.zeros(*query.shape[:2], WIDTH, dtype=query.dtype)
    mass = torch.zeros(BATCH, HEADS, query.shape[1], len(sources), dtype=query.dtype)
    q = module.to_query(query)
    projected = {name: module.to_key_value[name](tokens) for name, tokens in sources.items()}
    width = WIDTH // HEADS
    for b in range(BATCH):
        for i in range(query.shape[1]):
            for h in range(HEADS):
                part = slice(h * width, (h + 1) * width)
                keys, values, owner = [], [], []
                for m, (name, kv) in enumerate(projected.items()):
                    count = int(hidden.get(name, torch.full((BATCH,), kv.shape[1]))[b])
                    keys.append(kv[b, :count, :WIDTH][:, part])
                    values.append(kv[b, :count, WIDTH:][:, part])
                    owner += [m] * count
                weights = (torch.cat(keys) @ q[b, i, part] / width**0.5).softmax(0)
                out[b, i, part] = weights @ torch.cat(values)
                for m in range(len(sources)):
                    mass[b, h, i, m] = weights[[o == m for o in owner]].sum()
    return module.to_out(out), mass


def test_cross_modal_attention_is_its_formula():
    module = CrossModalAttention(WIDTH, HEADS, FEATURES).double()
    query, sources = QUERY.double(), {name: t.double() for name, t in SOURCES.items()}
    result = module(query, sources, LENGTHS, return_mass=True)
    out, mass = by_formula(module, query, sources, LENGTHS)
    torch.testing.assert_close(result.out, out)
    torch.testing.assert_close(result.mass, mass)


def test_a_missing_modality_is_one_of_length_zero():
    module = CrossModalAttention(WIDTH, HEADS, FEATURES)
    zero = {"audio": torch.zeros(BATCH, dtype=torch.int64)}
    wanted = module(QUERY, SOURCES, zero, return_mass=True)
    for sources in ({"image": SOURCES["image"]}, {**SOURCES, "audio": None}):
        got = module(QUERY, sources, return_mass=True)
        torch.testing.assert_close(got.out, wanted.out)
        torch.testing.assert_close(got.mass, wanted.mass)
    assert not wanted.mass[..., 1].any()


@pytest.mark.parametrize("how", ["left out", "length zero", "nan behind length zero"])
def test_without_any_modality_the_output_is_zero_and_gradients_are_finite(how):
    module = CrossModalAttention(WIDTH, HEADS, FEATURES)
    sources = {} if how == "left out" else {"image": SOURCES["image"].clone()}
    if "nan" in how:
        sources["image"].fill_(torch.nan)
    query = QUERY.clone().requires_grad_()
    out = module(query, sources, {"image": torch.zeros(BATCH, dtype=torch.int64)} if sources else None).out
    assert not out.any()
    if out.requires_grad:
        out.sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in [query, *module.to_query.parameters()])


def test_masks_hide_tokens():
    module = CrossModalAttention(WIDTH, HEADS, FEATURES)
    image = SOURCES["image"]
    mask = crossmodal.masks.key_padding(torch.arange(7).expand(BATCH, -1) < 4)
    got = module(QUERY, {"image": image}, masks={"image": mask}).out
    torch.testing.assert_close(got, module(QUERY, {"image": image[:, :4]}).out)


BAD = {
    "modality": (lambda m: m(QUERY, {"smell": QUERY}), "sources may have image, audio, got 'smell'"),
    "length of another": (lambda m: m(QUERY, {}, {"smell": QUERY}), "lengths may have image, audio, got 'smell'"),
    "query": (lambda m: m(QUERY[0], {}), r"query must have shape \(batch, seqlen_q, 16\), got \(5, 16\)"),
    "features": (lambda m: m(QUERY, {"image": QUERY}), r"sources\['image'\] must have shape \(batch, seqlen, 10\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call(CrossModalAttention(WIDTH, HEADS, FEATURES))


@pytest.mark.parametrize("build", [lambda: CrossModalAttention(10, 4, FEATURES), lambda: AttentionPool(10, 4)])
def test_heads_must_divide_the_width(build):
    with pytest.raises(ValueError, match="embed_dim must be a multiple of num_heads, got 10 and 4"):
        build()


def test_attention_over_no_modality_is_refused():
    with pytest.raises(ValueError, match="modalities must name at least one modality"):
        CrossModalAttention(WIDTH, HEADS, {})


def test_block_changes_nothing_until_its_gates_open_and_they_get_a_gradient():
    block = CrossModalBlock(WIDTH, HEADS, FEATURES)
    result = block(QUERY, SOURCES, LENGTHS, return_mass=True)
    assert torch.equal(result.out, QUERY) and result.mass.shape == (BATCH, HEADS, 5, 2)
    (result.out * torch.randn_like(QUERY)).sum().backward()
    assert block.attention_gate.grad and block.feed_forward_gate.grad


def test_block_is_its_formula():
    block = CrossModalBlock(WIDTH, HEADS, FEATURES, gate=0.7, hidden_dim=24)
    normed = {name: block.source_norms[name](tokens) for name, tokens in SOURCES.items()}
    gate = torch.tensor(0.7).tanh()
    attended = QUERY + gate * block.attention(block.query_norm(QUERY), normed, LENGTHS).out
    wanted = attended + gate * block.feed_forward(attended)
    torch.testing.assert_close(block(QUERY, SOURCES, LENGTHS).out, wanted)
    assert block.feed_forward[1].out_features == 24


def test_pool_attends_with_its_queries():
    pool = AttentionPool(WIDTH, HEADS, num_queries=2, features=10)
    tokens, lengths = SOURCES["image"], torch.tensor([7, 3, 1])
    key, value = (t.unflatten(2, (HEADS, -1)).transpose(1, 2) for t in pool.to_key_value(tokens).chunk(2, -1))
    query = pool.queries.unflatten(1, (HEADS, -1)).transpose(0, 1).expand(BATCH, -1, -1, -1)
    wanted = crossmodal.reference.attention(query, key, value, key_lengths=lengths).transpose(1, 2).flatten(2)
    torch.testing.assert_close(pool(tokens, lengths), pool.to_out(wanted))


def test_pool_of_one_token_is_that_token_and_of_none_is_zero():
    pool = AttentionPool(WIDTH, HEADS)
    tokens = torch.randn(2, 3, WIDTH)
    pooled = pool(tokens, torch.tensor([1, 0]))
    torch.testing.assert_close(pooled[0, 0], pool.to_out(pool.to_key_value(tokens[0, 0])[WIDTH:]))
    assert not pooled[1].any()


def test_pool_names_wrong_tokens():
    with pytest.raises(ValueError, match=r"tokens must have shape \(batch, seqlen, 16\), got \(3, 5, 10\)"):
        AttentionPool(WIDTH, HEADS)(torch.randn(3, 5, 10))


def test_reversal_is_the_identity_and_turns_the_gradient_round():
    x = torch.randn(4, requires_grad=True)
    y = gradient_reversal(x, 0.25)
    assert torch.equal(y, x)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(gradient, -0.25 * 2 * x)


def test_reversal_has_a_second_derivative_that_vmap_and_compile_know():
    x = torch.randn(3, 4, requires_grad=True)

    def loss(x):
        return gradient_reversal(x, 0.5).pow(3).sum()

    (gradient,) = torch.autograd.grad(loss(x), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    torch.testing.assert_close(second, 0.25 * 6 * x)  # turned round twice
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(x), gradient)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x)[0], gradient)


def test_reversal_refuses_what_is_no_tensor():
    with pytest.raises(TypeError, match=r"input must be a torch.Tensor, got list"):
        gradient_reversal([1.0])


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_discriminator_learns_what_the_encoder_is_told_to_hide(layers):
    module = ModalityDiscriminator(WIDTH, 2, num_layers=layers, hidden_dim=8)
    assert sum(isinstance(m, nn.Linear) for m in module.modules()) == layers + 1
    features, owner = torch.randn(20, WIDTH, requires_grad=True), torch.arange(20) % 2
    loss = nn.functional.cross_entropy(module(features, 0.5), owner)
    plain = nn.functional.cross_entropy(module.classify(features), owner)
    leaves = [features, *module.parameters()]
    for i, (got, wanted) in enumerate(
        zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(plain, leaves), strict=True)
    ):
        torch.testing.assert_close(got, -0.5 * wanted if i == 0 else wanted)


MODULES = {
    "MultiheadAttention": (lambda: crossmodal.nn.MultiheadAttention(WIDTH, HEADS), (QUERY, QUERY, QUERY)),
    "CrossModalAttention": (lambda: CrossModalAttention(WIDTH, HEADS, FEATURES), (QUERY, SOURCES, LENGTHS)),
    "CrossModalBlock": (lambda: CrossModalBlock(WIDTH, HEADS, FEATURES, gate=1.0), (QUERY, SOURCES, LENGTHS)),
    "AttentionPool": (lambda: AttentionPool(WIDTH, HEADS), (QUERY,)),
    "ModalityDiscriminator": (lambda: ModalityDiscriminator(WIDTH, 3), (QUERY,)),
    "Linear": (lambda: crossmodal.nn.Linear(WIDTH, 3), (QUERY,)),
}


def first(result):
    return result if torch.is_tensor(result) else result[0]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", MODULES)
def test_copy_of_every_module_gives_the_same_bits(name, clone):
    build, arguments = MODULES[name]
    module = build()
    wanted = first(module(*arguments))
    assert torch.equal(first(clone(module)(*arguments)), wanted)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_compiles_in_one_graph(name):
    torch._dynamo.reset()
    build, arguments = MODULES[name]
    module = build()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(first(compiled(*arguments)), first(module(*arguments)))


@pytest.mark.parametrize("name", MODULES)
def test_every_module_exports(name):
    build, arguments = MODULES[name]
    module = build()
    program = torch.export.export(module, arguments)
    torch.testing.assert_close(first(program.module()(*arguments)), first(module(*arguments)))


@pytest.mark.parametrize("name", MODULES)
def test_every_module_that_was_made_without_memory_can_be_given_its_first_weights(name):
    """As FSDP does: each part with parameters of its own draws them in reset_parameters."""
    module = MODULES[name][0]()
    again = copy.deepcopy(module).to("meta").to_empty(device="cpu")
    for part in again.modules():
        own = list(part.parameters(recurse=False))
        for weight in own:
            torch.nn.init.constant_(weight, torch.nan)
        if own:
            (part.reset_parameters if hasattr(part, "reset_parameters") else part._reset_parameters)()
            assert all(weight.isfinite().all() for weight in own)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_takes_device_and_dtype(name):
    kind = type(MODULES[name][0]())
    arguments = {
        "CrossModalAttention": (WIDTH, HEADS, FEATURES), "CrossModalBlock": (WIDTH, HEADS, FEATURES)
    }.get(name, (WIDTH, HEADS))  # fmt: skip
    module = kind(*arguments, device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in module.parameters())


@pytest.mark.parametrize("name", MODULES)
def test_gradients_of_every_module_pass_gradcheck(name):
    build, arguments = MODULES[name]
    module = build().double()
    wide = torch.utils._pytree.tree_map(
        lambda t: t[:2, :2].double() if t.is_floating_point() else t[:2].clamp(max=2), arguments
    )
    parameters = dict(module.named_parameters())

    def call(*leaves):
        return first(torch.func.functional_call(module, dict(zip(parameters, leaves, strict=True)), wide))

    torch.autograd.gradcheck(call, tuple(parameters.values()), fast_mode=True)


def test_explain_names_what_runs_in_a_module():
    mha = crossmodal.nn.MultiheadAttention(512, 8, batch_first=True)
    text, image = torch.randn(4, 77, 512), torch.randn(4, 197, 512)
    hidden = torch.arange(197) >= torch.tensor([[197], [20], [20], [20]])
    plan = crossmodal.explain(mha, text, image, image, key_padding_mask=hidden, need_weights=False)
    assert plan.op == "nn.MultiheadAttention" and plan.details["padding"] == "left out before the projections"
    assert {name for name in plan.details if "projection" in name} == {
        "projection 308 x 512 x 512", "projection 788 x 512 x 1024"
    }  # fmt: skip
    assert plan.kernel == crossmodal.explain(crossmodal.attention, *[torch.randn(4, 8, 77, 64)] * 3).kernel
    assert "hidden in the attention" in str(crossmodal.explain(mha, text, image, image, key_padding_mask=hidden))


def test_explain_says_why_a_projection_is_torchs(monkeypatch):
    monkeypatch.setenv("CROSSMODAL_LINEAR", "torch")
    layer = crossmodal.nn.Linear(512, 512)
    assert crossmodal.explain(layer, torch.randn(64, 512)).refused == [
        ("oneDNN", "oneDNN does not lead on this machine")
    ]
    monkeypatch.setenv("CROSSMODAL_LINEAR", "onednn")
    assert crossmodal.explain(layer, torch.randn(64, 512)).kernel == "oneDNN"


@pytest.mark.parametrize("name", ["CrossModalAttention", "AttentionPool", "MultiheadAttention", "Linear"])
def test_explain_knows_the_module(name):
    build, arguments = MODULES[name]
    assert str(crossmodal.explain(build(), *arguments)).startswith(f"crossmodal.nn.{name}: ")


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_explain_knows_nested_tensors(layout):
    mha = crossmodal.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    nested = torch.nested.nested_tensor([torch.randn(3, WIDTH), torch.randn(5, WIDTH)], layout=layout)
    plan = crossmodal.explain(mha, nested, nested, nested)
    assert plan.details["padding"] == "none: nested tensors"


def test_explain_of_a_bad_call_raises_its_error():
    mha = crossmodal.nn.MultiheadAttention(WIDTH, HEADS)
    with pytest.raises(ValueError, match="key must have 16 features, got 10"):
        crossmodal.explain(mha, QUERY, SOURCES["image"], SOURCES["image"])


SMALL = {
    "MultiheadAttention": (MODULES["MultiheadAttention"][0], lambda q, s: (q, q, q)),
    "CrossModalBlock": (MODULES["CrossModalBlock"][0], lambda q, s: (q[None], {n: t[None] for n, t in s.items()})),
    "AttentionPool": (MODULES["AttentionPool"][0], lambda q, s: (q[None],)),
}


def loss_of(module, arguments):
    parameters = dict(module.named_parameters())

    def loss(parameters, query, sources):
        return first(torch.func.functional_call(module, parameters, arguments(query, sources))).square().sum()

    return parameters, loss


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradient_of_each_example_agrees_with_a_loop(name):
    build, arguments = SMALL[name]
    parameters, loss = loss_of(build(), arguments)
    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, QUERY, SOURCES)
    for i in range(BATCH):
        alone = torch.func.grad(loss)(parameters, QUERY[i], {n: t[i] for n, t in SOURCES.items()})
        for key, gradient in alone.items():
            torch.testing.assert_close(each[key][i], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_forward_mode_agrees_with_the_gradient(name):
    build, arguments = SMALL[name]
    parameters, loss = loss_of(build(), arguments)
    tangents = {n: torch.randn_like(p) for n, p in parameters.items()}
    sources = {n: t[0] for n, t in SOURCES.items()}
    _, directional = torch.func.jvp(lambda p: loss(p, QUERY[0], sources), (parameters,), (tangents,))
    gradient = torch.func.grad(loss)(parameters, QUERY[0], sources)
    wanted = sum((gradient[n] * tangents[n]).sum() for n in parameters)
    torch.testing.assert_close(directional, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MultiheadAttention", "CrossModalBlock"])
def test_inductor_agrees_with_eager(name):
    torch._dynamo.reset()
    build, arguments = MODULES[name]
    module = build()
    parameters = list(module.parameters())
    got, wanted = (
        torch.autograd.grad(first(m(*arguments)).square().sum(), parameters)
        for m in (torch.compile(module, fullgraph=True), module)
    )
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)
