"""MultiheadAttention of nested tensors: each sample gets what it gets alone, in training too."""

import pytest
import torch
from torch import nn

import crossmodal
from crossmodal.nn import MultiheadAttention

EMBED, HEADS = 16, 4
LENGTHS_Q, LENGTHS_K = (3, 0, 5, 1), (4, 2, 0, 7)
LAYOUTS = [torch.jagged, torch.strided]


def samples(lengths, features=EMBED):
    return [torch.randn(n, features, requires_grad=True) for n in lengths]


def nested(tensors, layout):
    return torch.nested.as_nested_tensor(tensors, layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["jagged", "strided"])
@pytest.mark.parametrize("inputs", ["self", "cross", "three"])
@pytest.mark.parametrize("training", [False, True], ids=["answering", "training"])
def test_each_sample_gets_what_it_gets_alone(layout, inputs, training):
    kdim, vdim = (10, 14) if inputs == "three" else (EMBED, EMBED)
    module = MultiheadAttention(EMBED, HEADS, batch_first=True, kdim=kdim, vdim=vdim).train(training)
    queries = samples(LENGTHS_Q)
    keys = queries if inputs == "self" else samples(LENGTHS_K, kdim)
    values = samples(LENGTHS_K, vdim) if inputs == "three" else keys
    query = nested(queries, layout)
    key = query if keys is queries else nested(keys, layout)
    value = key if values is keys else nested(values, layout)
    out, weights = module(query, key, value)
    assert out.is_nested and out.layout == layout
    assert weights.shape == (4, max(LENGTHS_Q), max(LENGTHS_Q if inputs == "self" else LENGTHS_K))
    alone = [module(q, k, v) for q, k, v in zip(queries, keys, values, strict=True)]
    for i, (got, (wanted, its_weights)) in enumerate(zip(out.unbind(), alone, strict=True)):
        torch.testing.assert_close(got, wanted)
        rows, columns = its_weights.shape
        torch.testing.assert_close(weights[i, :rows, :columns], its_weights)
        assert not weights[i, rows:].any() and not weights[i, :, columns:].any()

    leaves = [t for t in {id(t): t for t in (*queries, *keys, *values)}.values() if t.numel()]
    leaves += module.parameters()
    got = torch.autograd.grad(sum(t.square().sum() for t in out.unbind()), leaves)
    wanted = torch.autograd.grad(sum(t.square().sum() for t, _ in alone), leaves)
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)


def test_answers_nested_tensors_as_torchs_fused_path_does():
    ours, theirs = MultiheadAttention(EMBED, HEADS, batch_first=True).eval(), None
    theirs = nn.MultiheadAttention(EMBED, HEADS, batch_first=True).eval()
    theirs.load_state_dict(ours.state_dict())
    query = nested([t.detach() for t in samples((3, 5, 1))], torch.strided)
    with torch.no_grad():
        for got, wanted in zip(
            *(m(query, query, query, need_weights=False)[0].unbind() for m in (ours, theirs)), strict=True
        ):
            torch.testing.assert_close(got, wanted)


def test_output_keeps_the_offsets_of_query():
    module = MultiheadAttention(EMBED, HEADS, batch_first=True)
    query = nested(samples(LENGTHS_Q), torch.jagged)
    out = module(query, query, query, need_weights=False)[0]
    assert out.offsets() is query.offsets()
    assert (out + query).shape == query.shape


def test_weights_of_each_head():
    module = MultiheadAttention(EMBED, HEADS, batch_first=True)
    query = nested(samples(LENGTHS_Q), torch.jagged)
    weights = module(query, query, query, average_attn_weights=False)[1]
    assert weights.shape == (4, HEADS, 5, 5)
    torch.testing.assert_close(weights.mean(1), module(query, query, query)[1])


QUERY = torch.nested.nested_tensor([torch.randn(3, EMBED), torch.randn(5, EMBED)], layout=torch.jagged)
DENSE = torch.randn(2, 5, EMBED)
BAD = {
    "dense key": ((QUERY, DENSE, DENSE), {}, {}, "key must be nested as the others are"),
    "dense query": ((DENSE, QUERY, QUERY), {}, {}, "query must be nested as the others are"),
    "padding": ((QUERY,) * 3, {}, {"key_padding_mask": torch.zeros(2, 5).bool()}, "key_padding_mask must be None"),
    "mask": ((QUERY,) * 3, {}, {"attn_mask": torch.zeros(5, 5).bool()}, "attn_mask must be None"),
    "added token": ((QUERY,) * 3, {"add_bias_kv": True}, {}, "query must be dense where add_bias_kv"),
    "dimensions": ((QUERY.unflatten(-1, (4, 4)),) * 3, {}, {}, r"query must be nested as \(batch, j, features\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    arguments, constructor, options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        MultiheadAttention(EMBED, HEADS, batch_first=True, **constructor)(*arguments, **options)


def test_encoder_of_torch_that_drops_padding_by_nested_tensors_gives_the_same():
    layer = nn.TransformerEncoderLayer(EMBED, HEADS, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    source, padding = torch.randn(3, 6, EMBED), torch.arange(6) >= torch.tensor([[6], [2], [4]])
    with torch.no_grad():
        wanted = encoder(source, src_key_padding_mask=padding)
        crossmodal.convert(encoder)
        torch.testing.assert_close(encoder(source, src_key_padding_mask=padding), wanted)
