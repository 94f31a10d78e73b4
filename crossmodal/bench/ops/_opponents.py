"""Attention as one writes it with torch alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def math_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Matmul, softmax, matmul, all of it in the dtype of the input; in half precision often faster than SDPA."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.softmax(scores, dim=-1) @ value


def flex(key_mask: Tensor | None, seqlen_q: int) -> Callable[..., Tensor]:
    """Compiled FlexAttention. Compiling takes many seconds and waits for the first call; a block mask, like the masks
    of the others, is made ahead.

    Args:
        key_mask: ``(batch, seqlen_k)``, True = attend.
    """
    options: dict[str, Any] = {}

    def prepare() -> None:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        # One compiled version at a time: with those of earlier cases alive, Dynamo soon gives up.
        torch.compiler.reset()
        options["compiled"] = torch.compile(flex_attention, dynamic=False)
        options["block_mask"] = None
        if key_mask is not None:

            def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
                return key_mask[b, j]

            batch, seqlen_k = key_mask.shape
            options["block_mask"] = create_block_mask(visible, batch, None, seqlen_q, seqlen_k, device="cpu")

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if not options:
            prepare()
        out: Tensor = options["compiled"](query, key, value, block_mask=options["block_mask"])
        return out

    return call
