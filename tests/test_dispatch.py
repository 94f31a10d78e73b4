"""Which calls run in compiled code, and what happens to the rest: right all the same, said once, refused if strict."""

import logging

import pytest
import torch

import crossmodal
from crossmodal import Source, dispatch, reference

Q, K = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8)
TWO_HEADS, SEED, SINK = K[:, :2], torch.tensor([7]), torch.zeros(4)
NUMBERS = torch.tensor([7, 2])
CU = torch.tensor([0, 2, 5], dtype=torch.int32)
PACKED = torch.randn(5, 4, 8)

COMPILED = {
    "float16": lambda m: m.attention(Q.half(), K.half(), K.half()),
    "bfloat16": lambda m: m.attention(Q.bfloat16(), K.bfloat16(), K.bfloat16()),
    "float64": lambda m: m.attention(Q.double(), K.double(), K.double()),
    "grouped queries": lambda m: m.attention(Q, TWO_HEADS, TWO_HEADS, enable_gqa=True),
    "grouped queries of one source": lambda m: m.fuse(Q, [Source(TWO_HEADS, TWO_HEADS), Source(K, K)]).out,
    "window": lambda m: m.attention(Q, K, K, window_size=(1, 0)),
    "causal": lambda m: m.attention(Q, K, K, is_causal=True),
    "lower_right": lambda m: m.attention(Q, K, K, is_causal=True, causal_align="lower_right"),
    "softcap": lambda m: m.attention(Q, K, K, softcap=2.0),
    "sink": lambda m: m.attention(Q, K, K, sink=SINK),
    "lengths": lambda m: m.attention(Q, K, K, key_lengths=NUMBERS, query_lengths=torch.tensor([5, 2])),
    "float16 bias": lambda m: m.attention(Q, K, K, torch.zeros(5, 7, dtype=torch.float16)),
    "dropout": lambda m: m.attention(Q, K, K, dropout_p=0.5, dropout_seed=SEED),
    "lse and mass": lambda m: m.fuse(Q, [Source(K, K), None], return_lse=True, return_mass=True).mass,
    "varlen": lambda m: m.attention_varlen(PACKED, PACKED, PACKED, CU, CU, 3, 3),
    "weighted_sum": lambda m: m.weighted_sum(torch.ones(5, 7), K),
    "weighted_sum in float16": lambda m: m.weighted_sum(torch.ones(5, 7).half(), K.half()),
    "softmax_weighted_sum": lambda m: m.softmax_weighted_sum(torch.ones(5, 7), K),
    **{
        f"associate {reduce}": lambda m, reduce=reduce: m.associate(Q, K, reduce=reduce, sink=SINK)
        for reduce in (None, "heads", "keys", "entropy", "mass")
    },
    "associate topk": lambda m: m.associate(Q, K, topk=2)[0],
}


@pytest.mark.parametrize("name", COMPILED)
def test_strict_mode_lets_the_whole_contract_pass(name, monkeypatch):
    """Forward and backward, with a gradient for everything that can have one."""
    for tensor in (Q, K, SINK, PACKED):
        monkeypatch.setattr(tensor, "requires_grad", True)
    with crossmodal.strict():
        COMPILED[name](crossmodal).float().sum().backward(inputs=[Q, K, SINK, PACKED])


def forward_mode(call):
    """`call` at a dual number, which no kernel takes."""
    return torch.func.jvp(lambda q: call(q), (Q,), (torch.ones_like(Q),))[0]


NO_KERNEL = {
    "forward mode": (lambda m: forward_mode(lambda q: m.attention(q, K, K)), "forward-mode"),
    "dropout under grad": (
        lambda m: torch.func.grad(lambda q: m.attention(q, K, K, dropout_p=0.5, dropout_seed=SEED).sum())(Q),
        "dropout under torch.func",
    ),
}


@pytest.mark.parametrize("name", NO_KERNEL)
def test_without_a_kernel_the_reference_answers(name):
    call, _ = NO_KERNEL[name]
    assert torch.equal(call(crossmodal), call(reference))


@pytest.mark.parametrize("name", NO_KERNEL)
def test_strict_mode_says_what_is_missing(name):
    call, reason = NO_KERNEL[name]
    with crossmodal.strict(), pytest.raises(RuntimeError, match=reason):
        call(crossmodal)


def test_strict_mode_ends_with_its_block():
    call, _ = NO_KERNEL["forward mode"]
    with pytest.raises(RuntimeError), crossmodal.strict():
        call(crossmodal)
    call(crossmodal)


def test_strict_mode_of_a_process_comes_from_the_environment():
    import os
    import subprocess
    import sys

    program = (
        "import torch, crossmodal\n"
        "q = torch.randn(1, 1, 2, 4)\n"
        "crossmodal.attention(q, q, q)\n"
        "torch.func.jvp(lambda q: crossmodal.attention(q, q, q), (q,), (q,))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "CROSSMODAL_STRICT": "1"}, capture_output=True, text=True
    )
    assert result.returncode == 1 and "strict mode: forward-mode" in result.stderr


def test_each_reason_is_logged_once(caplog, monkeypatch):
    monkeypatch.setattr(dispatch, "_told", set())
    with caplog.at_level(logging.WARNING, "crossmodal"):
        for _ in range(3):
            forward_mode(lambda q: crossmodal.attention(q, K, K))
    message = "attention runs in plain torch: forward-mode differentiation runs through plain torch"
    assert [r.getMessage() for r in caplog.records] == [message]


def test_reasons_that_differ_in_sizes_alone_are_one(caplog, monkeypatch):
    monkeypatch.setattr(dispatch, "_told", set())
    with caplog.at_level(logging.WARNING, "crossmodal"):
        for size in range(50):
            dispatch.fall_back("attention", [f"no kernel for ({size}, {size + 1})"])
        for dtype in ("torch.complex64", "torch.complex128"):
            dispatch.fall_back("attention", [f"no kernel for {dtype}"])
    assert len(caplog.records) == len(dispatch._told) == 3


def test_strict_mode_ends_with_the_last_of_several_in_whatever_order():
    first, second = crossmodal.strict(), crossmodal.strict()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert dispatch._strict
    second.__exit__(None, None, None)
    assert dispatch._strict == dispatch._always_strict


def test_nothing_is_logged_while_compiling(caplog):
    torch._dynamo.reset()
    with caplog.at_level(logging.DEBUG, "crossmodal"):
        torch.compile(lambda q: crossmodal.attention(q, K, K, softcap=2.0), fullgraph=True, backend="aot_eager")(Q)
    assert not [r for r in caplog.records if r.name == "crossmodal"]
