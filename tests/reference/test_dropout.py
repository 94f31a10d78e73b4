"""The dropout mask: Philox4x32-10 over coordinates, the same wherever and however it is drawn."""

import pytest
import torch

from crossmodal import Source, reference
from crossmodal.reference._dropout import _philox, dropout_keep

# Known answers of Random123 (Salmon et al., 2011), file kat_vectors: counter, key, result.
KNOWN_ANSWERS = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "wanted"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, wanted):
    got = _philox([torch.tensor(c) for c in counter], *(torch.tensor(k) for k in key))
    assert [int(word) for word in got] == wanted


def test_mask_counts_query_block_of_keys_and_head():
    """Word j & 3 of the block (i, j >> 2, b * num_heads + h, 0), kept iff it reaches p * 2^32."""
    seed = torch.tensor([(5 << 32) | 7])
    keep = dropout_keep(seed, 0.4, 2, 3, 4, 10)
    for b, h, i, j in [(0, 0, 0, 0), (1, 2, 3, 9), (1, 0, 2, 4), (0, 2, 1, 7)]:
        counter = [torch.tensor(c) for c in (i, j >> 2, b * 3 + h, 0)]
        word = int(_philox(counter, torch.tensor(7), torch.tensor(5))[j & 3])
        assert bool(keep[b, h, i, j]) == (word >= int(0.4 * 2**32))


def test_negative_seed_is_a_seed():
    keep = dropout_keep(torch.tensor([-1]), 0.5, 1, 1, 1, 4)
    words = _philox([torch.tensor(0)] * 4, torch.tensor(0xFFFFFFFF), torch.tensor(0xFFFFFFFF))
    assert keep.flatten().tolist() == [int(word) >= 2**31 for word in words]


@pytest.mark.parametrize(("p", "share"), [(0.0, 1.0), (1.0, 0.0), (0.25, 0.75)])
def test_share_of_kept_weights(p, share):
    keep = dropout_keep(torch.tensor([3]), p, 1, 4, 64, 64)  # 16,384 draws
    deviation = (p * (1 - p) / keep.numel()) ** 0.5
    assert abs(keep.double().mean().item() - share) <= 5 * deviation


def test_dropout_of_one_gives_zero():
    query, key = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 5, 4)
    out = reference.attention(query, key, key, dropout_p=1.0, dropout_seed=torch.tensor([3]))
    assert (out == 0).all()


def test_kept_weights_are_scaled_and_the_rest_is_gone():
    query, key = torch.randn(2, 2, 3, 4), torch.randn(2, 2, 9, 4)
    seed = torch.tensor([11])
    value = torch.eye(9).expand(2, 2, 9, 9)
    out = reference.attention(query, key, value, dropout_p=0.4, dropout_seed=seed)
    keep = dropout_keep(seed, 0.4, 2, 2, 3, 9)
    torch.testing.assert_close(out, torch.where(keep, reference.associate(query, key) / 0.6, 0.0))


def test_lse_and_mass_are_before_dropout():
    query, key = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 9, 4)
    sources, options = (
        [Source(key, key), Source(key[:, :, :2], key[:, :, :2])],
        {"return_lse": True, "return_mass": True},
    )
    plain = reference.fuse(query, sources, **options)
    dropped = reference.fuse(query, sources, **options, dropout_p=0.5, dropout_seed=torch.tensor([3]))
    assert torch.equal(plain.lse, dropped.lse) and torch.equal(plain.mass, dropped.mass)


def test_keys_of_fuse_count_along_the_padded_concatenation():
    query, key = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 9, 4)
    options = {"dropout_p": 0.5, "dropout_seed": torch.tensor([3])}
    parts = [Source(key[:, :, :5], key[:, :, :5]), Source(key[:, :, 5:], key[:, :, 5:])]
    torch.testing.assert_close(
        reference.fuse(query, parts, **options).out, reference.attention(query, key, key, **options)
    )
