"""The dropout mask that every implementation draws: Philox4x32-10 over (query, key, head) coordinates.

Source: Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3". Key = the seed's two words, counter =
(i, j >> 2, b * num_heads + h, 0), word j & 3 of the block; kept iff word >= floor(p * 2^32).
"""

import torch
from torch import Tensor

_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF


def dropout_keep(seed: Tensor, p: float, batch: int, num_heads: int, seqlen_q: int, seqlen_k: int) -> Tensor:
    """(batch, num_heads, seqlen_q, seqlen_k) bool, True = kept."""
    device = seed.device
    blocks = (seqlen_k + 3) // 4
    head = torch.arange(batch * num_heads, device=device).view(batch, num_heads, 1, 1)
    i = torch.arange(seqlen_q, device=device).view(1, 1, seqlen_q, 1)
    block = torch.arange(blocks, device=device).view(1, 1, 1, blocks)
    shape = (batch, num_heads, seqlen_q, blocks)
    counter = [
        i.expand(shape),
        block.expand(shape),
        head.expand(shape),
        torch.zeros((), dtype=torch.int64, device=device),
    ]
    seed = seed.reshape(())
    words = _philox(counter, seed & _LOW, (seed >> 32) & _LOW)
    uniform = torch.stack([w.expand(shape) for w in words], dim=-1).reshape(batch, num_heads, seqlen_q, blocks * 4)
    return uniform[..., :seqlen_k] >= int(p * 2**32)


def _philox(counter: list[Tensor], key_0: Tensor, key_1: Tensor) -> list[Tensor]:
    c0, c1, c2, c3 = counter
    for _ in range(10):
        # int64 products wrap modulo 2^64, which is all that the high and the low word need.
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        high_0, low_0 = (product_0 >> 32) & _LOW, product_0 & _LOW
        high_1, low_1 = (product_1 >> 32) & _LOW, product_1 & _LOW
        c0, c1, c2, c3 = high_1 ^ c1 ^ key_0, low_1, high_0 ^ c3 ^ key_1, low_0
        key_0, key_1 = (key_0 + _WEYL_0) & _LOW, (key_1 + _WEYL_1) & _LOW
    return [c0, c1, c2, c3]
