"""The examples in public docstrings run and print what they say."""

import doctest

import pytest
import torch

import crossmodal
from crossmodal import Source

PUBLIC = [
    crossmodal.attention,
    crossmodal.fuse,
    crossmodal.attention_varlen,
    crossmodal.weighted_sum,
    crossmodal.softmax_weighted_sum,
    crossmodal.associate,
]


MODULES = [
    crossmodal.convert,
    crossmodal.sdpa,
    crossmodal.enable_sdpa,
    crossmodal.nn.MultiheadAttention,
    crossmodal.nn.CrossModalAttention,
    crossmodal.nn.CrossModalBlock,
    crossmodal.nn.AttentionPool,
    crossmodal.nn.ModalityDiscriminator,
    crossmodal.nn.gradient_reversal,
]


@pytest.mark.parametrize("function", [*PUBLIC, crossmodal.explain, *MODULES], ids=lambda f: f.__name__)
def test_docstring_example_runs(function):
    names = {"torch": torch, "crossmodal": crossmodal, "Source": Source}
    tests = [t for t in doctest.DocTestFinder().find(function, function.__name__, globs=names) if t.examples]
    assert tests, "no example"
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize("function", PUBLIC, ids=lambda f: f.__name__)
def test_reference_has_the_same_signature(function):
    import inspect

    assert inspect.signature(function) == inspect.signature(getattr(crossmodal.reference, function.__name__))
