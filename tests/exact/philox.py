"""The dropout mask of the contract in numpy.

Philox4x32-10 (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3"); key = the seed's two words, low word
first, counter = (i, j >> 2, b * num_heads + h, 0), word j & 3; kept iff word >= floor(p * 2^32).
"""

import math

import numpy as np

_LOW = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)


def philox(counter: list[np.ndarray], key: tuple[int, int]) -> list[np.ndarray]:
    """Ten rounds on arrays of uint64 that hold 32-bit words."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = x0 * np.uint64(0xD2511F53), x2 * np.uint64(0xCD9E8D57)
        x0 = (right >> _WORD) ^ x1 ^ np.uint64(k0)
        x2 = (left >> _WORD) ^ x3 ^ np.uint64(k1)
        x1, x3 = right & _LOW, left & _LOW
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [x0, x1, x2, x3]


def kept(seed: int, p: float, shape: tuple[int, int, int, int], first_sample: int = 0) -> np.ndarray:
    """(batch, num_heads, seqlen_q, seqlen_k) bool; samples count from `first_sample`."""
    batch, num_heads, seqlen_q, seqlen_k = shape
    blocks = -(-seqlen_k // 4)
    b, h, i, block = np.indices((batch, num_heads, seqlen_q, blocks), dtype=np.uint64)
    row = (b + np.uint64(first_sample)) * np.uint64(num_heads) + h
    unsigned = seed % 2**64  # two's complement
    words = philox([i, block, row, np.zeros_like(i)], (unsigned % 2**32, unsigned >> 32))
    word = np.stack(words, axis=-1).reshape(batch, num_heads, seqlen_q, 4 * blocks)[..., :seqlen_k]
    return word >= np.uint64(math.floor(p * 2**32))
