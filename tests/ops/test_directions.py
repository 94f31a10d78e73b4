"""Gradients in several directions at once, as torch's older vmap has them."""

from threading import Thread

import pytest
import torch
from torch._vmap_internals import _vmap
from torch.autograd.functional import hessian, jacobian

import crossmodal
from crossmodal import Source

Q, K, V = (torch.randn(2, 2, rows, 4, dtype=torch.float64) for rows in (3, 5, 5))
SEED = torch.tensor([1])
LENGTHS = torch.tensor([5, 2])
ENDS = torch.tensor([0, 2, 6], dtype=torch.int32)
MODULE = crossmodal.nn.MultiheadAttention(4, 2, dtype=torch.float64)

CALLS = {
    "attention": lambda q: crossmodal.attention(q, K, V),
    "lengths": lambda q: crossmodal.attention(q, K, V, key_lengths=LENGTHS),
    "bias and sink": lambda q: crossmodal.attention(q, K, V, q @ K.mT, sink=q[0, :, 0, 0]),
    "dropout": lambda q: crossmodal.attention(q, K, V, dropout_p=0.3, dropout_seed=SEED),
    "fuse": lambda q: crossmodal.fuse(q, [Source(K, V), Source(q, q, LENGTHS.clamp(max=3))]).out,
    "lse": lambda q: crossmodal.fuse(q, [Source(K, V), Source(q, q)], return_lse=True).lse,
    "mass": lambda q: crossmodal.fuse(q, [Source(K, V), Source(q, q)], return_mass=True).mass,
    "varlen": lambda q: crossmodal.attention_varlen(*3 * [q.transpose(1, 2).flatten(0, 1)], ENDS, ENDS, 4, 4),
    "varlen, dropout": lambda q: crossmodal.attention_varlen(
        *3 * [q.transpose(1, 2).flatten(0, 1)], ENDS, ENDS, 4, 4, dropout_p=0.3, dropout_seed=SEED
    ),
    "associate": lambda q: crossmodal.associate(q, [Source(K, V), Source(q, q)]),
    "weighted_sum": lambda q: crossmodal.weighted_sum(q @ K.mT, V, lengths=LENGTHS),
    "strongest": lambda q: crossmodal.associate(q, K, topk=2)[0],
    "softmax_weighted_sum": lambda q: crossmodal.softmax_weighted_sum(q @ K.mT, V, lengths=LENGTHS),
    "module": lambda q: MODULE(*3 * [q.flatten(1, 2)])[0],
}


@pytest.mark.parametrize("name", CALLS)
def test_jacobian_is_that_of_one_direction_after_the_other(name):
    got, wanted = (jacobian(CALLS[name], Q, vectorize=v) for v in (True, False))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", CALLS)
def test_hessian_is_that_of_one_direction_after_the_other(name):
    def loss(q):
        return CALLS[name](q).square().sum()

    got, wanted = (hessian(loss, Q, vectorize=v) for v in (True, False))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", CALLS)
def test_what_was_found_in_several_directions_can_be_differentiated(name):
    def inner(q):  # what surrounds the call has a graph also where that of the call is missing
        return CALLS[name](q.tanh()).tanh()

    def gradients(vectorize):
        q = Q.clone().requires_grad_()
        first = jacobian(inner, q, create_graph=True, vectorize=vectorize)
        second = hessian(lambda q: inner(q).sum(), q, create_graph=True, vectorize=vectorize)
        return [torch.autograd.grad(found.square().sum(), q)[0] for found in (first, second)]

    for got, wanted in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(got, wanted)


def one_direction(create_graph=False):
    q = Q.clone().requires_grad_()
    out = CALLS["bias and sink"](q)  # its gradients are a list, and more than one
    return lambda c: torch.autograd.grad(out, q, c, retain_graph=True, create_graph=create_graph)[0]


NESTED = {  # each of two vmaps, one within the other, has a cotangent, of which the gradient reads one or both
    "both": lambda gradient: lambda u, w: gradient(u * w),
    "outer": lambda gradient: lambda u, w: gradient(u) * w.sum(),
    "inner": lambda gradient: lambda u, w: gradient(w) * u.sum(),
}


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", NESTED)
def test_directions_may_be_hidden_twice(name, create_graph):
    function = NESTED[name](one_direction(create_graph))
    us, ws = torch.randn(2, *Q.shape, dtype=Q.dtype), torch.randn(3, *Q.shape, dtype=Q.dtype)
    got = _vmap(lambda u: _vmap(lambda w: function(u, w))(ws))(us)
    torch.testing.assert_close(got, torch.stack([torch.stack([function(u, w) for w in ws]) for u in us]))


def test_vmaps_that_hide_directions_of_different_cotangents():
    q = Q.clone().requires_grad_()
    result = crossmodal.fuse(q, [Source(K, V), Source(q, q)], return_lse=True)

    def function(u, w):
        return torch.autograd.grad((result.out, result.lse), q, (u, w), retain_graph=True)[0]

    us, ws = (torch.randn(count, *t.shape, dtype=Q.dtype) for count, t in ((2, result.out), (3, result.lse)))
    got = _vmap(lambda u: _vmap(lambda w: function(u, w))(ws))(us)
    torch.testing.assert_close(got, torch.stack([torch.stack([function(u, w) for w in ws]) for u in us]))


def test_backward_may_run_in_another_thread():
    """As on a GPU, whose gradients a thread of its own computes."""
    gradient, us = one_direction(), torch.randn(2, *Q.shape, dtype=Q.dtype)

    def elsewhere(u):
        found = []
        thread = Thread(target=lambda: found.append(gradient(u)))
        thread.start()
        thread.join()
        return found[0]

    torch.testing.assert_close(_vmap(elsewhere)(us), torch.stack([gradient(u) for u in us]))


def test_what_no_vmap_of_torch_has_hidden_is_an_error():
    with pytest.raises(RuntimeError, match="vmap outside levels"):
        one_direction()(torch._add_batch_dim(torch.ones(2, *Q.shape, dtype=Q.dtype), 0, 0))
