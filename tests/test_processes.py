"""Forked and spawned processes, threads that were there before them, and pickles that travel between them."""

import os
import subprocess
import sys
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import crossmodal

Q, K = torch.randn(4, 4, 64, 16), torch.randn(4, 4, 80, 16)
FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def call():
    q = Q.clone().requires_grad_()
    out = crossmodal.attention(q, K, K, key_lengths=torch.tensor([80, 0, 3, 40]))
    (gradient,) = torch.autograd.grad(out.sum(), q)
    return out.detach(), gradient


class Attended(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return call()[0][index % 4]


@FORKS
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_forked_child_of_a_process_that_has_used_threads_gives_the_same_bits():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        wanted = call()  # threads are there now
    finally:
        torch.set_num_threads(before)
    child = os.fork()
    if child == 0:  # no pytest in the child, whatever happens
        try:
            torch.set_num_threads(1)
            os._exit(0 if all(torch.equal(g, w) for g, w in zip(call(), wanted, strict=True)) else 1)
        finally:
            os._exit(2)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.1)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")


@FORKS
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_workers_of_a_data_loader_give_the_same_bits():
    wanted = call()[0]
    loader = DataLoader(Attended(), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=180)
    got = torch.cat(list(loader))
    assert torch.equal(got, torch.cat([wanted, wanted[:2]]))


@pytest.mark.slow
def test_spawned_process_reads_a_pickled_module(tmp_path):
    module = crossmodal.nn.MultiheadAttention(16, 2)
    x = torch.randn(5, 3, 16)
    torch.save((module, x, module(x, x, x)[0].detach()), tmp_path / "module.pt")
    script = (
        "import sys, torch\n"
        "module, x, wanted = torch.load(sys.argv[1], weights_only=False)\n"
        "print(type(module).__module__, torch.equal(module(x, x, x)[0], wanted))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "module.pt")], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["crossmodal.nn.multihead_attention", "True"], done.stderr


def test_deterministic_mode_refuses_nothing_and_repeats():
    """Neither functions nor modules use an operation of torch that has no deterministic form."""
    module = crossmodal.nn.CrossModalBlock(32, 4, {"image": 32}, gate=1.0)
    mha = crossmodal.nn.MultiheadAttention(512, 8, batch_first=True)
    x, padding = torch.randn(2, 9, 512, requires_grad=True), torch.arange(9) >= torch.tensor([[9], [3]])
    query, image = torch.randn(2, 5, 32, requires_grad=True), torch.randn(2, 7, 32)

    def gradients():
        out = module(query, {"image": image}, {"image": torch.tensor([7, 0])}).out.square().sum()
        out = out + mha(x, x, x, key_padding_mask=padding, need_weights=False)[0].square().sum()
        return torch.autograd.grad(out, [x, query, *module.parameters(), *mha.parameters()])

    torch.use_deterministic_algorithms(True)
    try:
        first, second = gradients(), gradients()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_checkpointed_block_gives_the_same_gradients():
    """Dropout included: recomputing draws the same numbers."""
    from torch.utils.checkpoint import checkpoint

    block = crossmodal.nn.CrossModalBlock(32, 4, {"image": 32}, gate=1.0, dropout=0.3)
    query, image = torch.randn(2, 5, 32), torch.randn(2, 7, 32)

    def gradients(wrap):
        torch.manual_seed(4)
        out = wrap(lambda q: block(q, {"image": image}).out, query)
        return torch.autograd.grad(out.square().sum(), list(block.parameters()))

    plain = gradients(lambda function, *a: function(*a))
    for got, wanted in zip(gradients(lambda f, *a: checkpoint(f, *a, use_reentrant=False)), plain, strict=True):
        assert torch.equal(got, wanted)
