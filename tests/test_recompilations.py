"""How often ragged batches compile: once for the first sizes, once for all others."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import crossmodal
from crossmodal import Source

BATCHES = [(3, 11, 7), (5, 30, 64), (2, 17, 9), (7, 90, 33), (4, 8, 2), (6, 65, 128)]  # batch, queries, keys


def ends_of(batch, total):
    return torch.linspace(0, total, batch + 1).int()


def varlen(batch, total_q, total_k):
    q, k = torch.randn(total_q, 4, 8), torch.randn(total_k, 4, 8)
    return crossmodal.attention_varlen, (q, k, k, ends_of(batch, total_q), ends_of(batch, total_k), 128, 128)


def padded(batch, seqlen_q, seqlen_k):
    q, k = torch.randn(batch, 4, seqlen_q, 8), torch.randn(batch, 4, seqlen_k, 8)
    lengths = torch.randint(0, seqlen_k + 1, (batch,))
    return lambda q, k, n: crossmodal.attention(q, k, k, key_lengths=n), (q, k, lengths)


def fused(batch, seqlen_q, seqlen_k):
    q, k = torch.randn(batch, 4, seqlen_q, 8), torch.randn(batch, 4, seqlen_k, 8)
    lengths = torch.randint(0, seqlen_k + 1, (batch,))
    return lambda q, k, n: crossmodal.fuse(q, [Source(k, k, n), Source(q, q)], return_mass=True).mass, (q, k, lengths)


def nested(batch, total_q, total_k):
    lengths = [1 + total_q // (i + 1) for i in range(batch)]
    q = torch.nested.nested_tensor([torch.randn(n, 4, 8) for n in lengths], layout=torch.jagged)
    return lambda q: crossmodal.attention(*[q.transpose(1, 2)] * 3).values(), (q,)


def module(batch, seqlen_q, seqlen_k):
    q, k = torch.randn(batch, seqlen_q, 16), torch.randn(batch, seqlen_k, 16)
    return MODULE, (q, k, k, torch.rand(batch, seqlen_k) < 0.4, False)


MODULE = crossmodal.nn.MultiheadAttention(16, 2, batch_first=True)
WAYS = {"packed": varlen, "padded": padded, "fused": fused, "nested": nested, "module": module}


@pytest.mark.parametrize("training", [False, True], ids=["", "with gradients"])
@pytest.mark.parametrize("name", WAYS)
def test_ragged_batches_compile_twice(name, training):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = None
    for sizes in BATCHES:
        function, arguments = WAYS[name](*sizes)
        compiled = torch.compile(function, fullgraph=True, backend=counter) if compiled is None else compiled
        arguments = [
            a.requires_grad_(training and a.is_floating_point()) if torch.is_tensor(a) else a for a in arguments
        ]
        got, wanted = compiled(*arguments), function(*arguments)
        got, wanted = (r[0] if isinstance(r, tuple) else r for r in (got, wanted))
        torch.testing.assert_close(got, wanted)
        if training:
            got.sum().backward()
    assert counter.frame_count <= 2


def test_lengths_alone_never_compile_again():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda q, k, n: crossmodal.attention(q, k, k, key_lengths=n), fullgraph=True, backend=counter
    )
    q, k = torch.randn(3, 4, 5, 8), torch.randn(3, 4, 9, 8)
    for _ in range(5):
        compiled(q, k, torch.randint(0, 10, (3,)))
    assert counter.frame_count == 1
