"""AV-MNIST, AV-Find and digit strings: splits without a common source, samples that are functions of their number."""

import gzip

import numpy as np
import pytest
import torch

pytest.importorskip("soundfile", reason="needs the extra train")

from crossmodal.data.av_find import CELL, GRID, av_find
from crossmodal.data.av_mnist import AvMnist, av_mnist
from crossmodal.data.av_splits import split_recordings
from crossmodal.data.babble import Babble, pink_noise
from crossmodal.data.digit_strings import SYMBOLS, digit_strings
from crossmodal.data.fsdd import Recording, load_fsdd
from crossmodal.data.mnist import load_mnist, read_idx
from crossmodal.data.number_words import LANGUAGES
from tests.data.recorded import SPEAKERS, make_root, real_root, write_idx

MAKERS = {
    "clean": lambda root, **options: av_mnist(root, "clean", **options),
    "speaker": lambda root, **options: av_mnist(root, "speaker", **options),
    "hard": lambda root, **options: av_mnist(root, "hard", **options),
    "find": av_find,
    "find by text": lambda root, **options: av_find(root, "text", **options),
    "strings": digit_strings,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("recorded"))


@pytest.fixture(scope="module", params=MAKERS)
def splits(root, request):
    return MAKERS[request.param](root, seed=3)


def same(first, second):
    return all(torch.equal(first.inputs[name], second.inputs[name]) for name in first.inputs)


def test_sample_repeats(splits):
    for data in splits[:3]:
        assert same(data[5], data[5]) and torch.equal(data[5].label, data[5].label)


def test_training_changes_with_the_epoch_and_the_test_does_not(splits):
    for data, changes in ((splits.train, True), (splits.validation, False), (splits.test, False)):
        before = data[5]
        data.set_epoch(1)
        assert same(before, data[5]) != changes
        data.set_epoch(0)


def test_inputs_are_what_the_modalities_say(splits):
    for data in splits[:3]:
        inputs = data[0].inputs
        assert inputs.keys() == data.modalities.keys()
        for name, modality in data.modalities.items():
            if modality.kind == "image":
                assert inputs[name].shape == modality.size and inputs[name].dtype == torch.float32
            else:
                assert inputs[name].dtype == (torch.int64 if modality.kind == "text" else torch.float32)
                assert inputs[name].ndim == 1


def test_another_seed_gives_other_training_and_the_same_test(root):
    first, second = (av_mnist(root, "hard", seed=seed) for seed in (0, 1))
    assert not same(first.train[0], second.train[0])
    assert same(first.test[0], second.test[0])


@pytest.mark.parametrize("fold", [None, 0, 4])
def test_splits_share_no_recording_and_folds_no_speaker(root, fold):
    parts = split_recordings(load_fsdd(root), fold)
    key = {part: {r[1:] if fold is None else r.speaker for r in rows} for part, rows in parts.items()}
    assert all(key.values()) and not (key["train"] & key["test"] or key["train"] & key["validation"])
    assert not key["test"] & key["validation"]
    assert sum(map(len, parts.values())) == 10 * len(SPEAKERS) * 12
    if fold is not None:
        assert key["test"] == {SPEAKERS[fold]}


def test_splits_share_no_image(root):
    parts = av_mnist(root, "clean")[:3]
    rows = [{data._pixels[row].tobytes() for row in range(len(data))} for data in parts]
    assert not (rows[0] & rows[1] or rows[0] & rows[2] or rows[1] & rows[2])


def test_label_is_what_is_spoken(root):
    data = av_mnist(root, "clean").test
    spoken = [{r.waveform.tobytes() for r in load_fsdd(root) if r.digit == digit} for digit in range(10)]
    for index in range(20):
        sample = data[index]
        assert sample.inputs["audio"].numpy().tobytes() in spoken[int(sample.label)]


def test_hard_speech_is_five_decibels_below_its_noise():
    """A tone in the place of the word, so that it can be found again."""
    tone = (np.sqrt(2) * np.sin(2 * np.pi * 1000 * np.arange(7000) / 8000)).astype(np.float32)
    recordings = [Recording(tone, digit, "x", take) for digit in range(10) for take in range(2)]
    data = AvMnist(np.zeros((200, 784), np.float32), np.zeros(200, np.int64), recordings, "test", hard=True, seed=0)
    noise = np.random.default_rng(1)
    talk = Babble([noise.standard_normal(9000).astype(np.float32)], 4, noise)
    data._babble = talk
    powers = []
    for index in range(200):
        wave = data[index].inputs["audio"].numpy()
        assert wave.shape == (8000,)
        rest = wave[800 : 800 + 7000] - tone
        powers.append(np.mean(rest**2))
    assert abs(10 * np.log10(np.mean(powers)) - 5.0) < 0.3


def test_hard_image_has_four_degrees_of_freedom(root):
    pixels = av_mnist(root, "hard").test._pixels
    assert np.linalg.matrix_rank(pixels - pixels.mean(0), tol=1e-2) == 4


def test_babble_has_the_power_that_is_promised():
    rng = np.random.default_rng(0)
    talk = [rng.standard_normal(5000).astype(np.float32) for _ in range(10)]
    babble = Babble(talk, 4, rng)
    assert abs(np.mean([np.mean(babble.draw(8000, rng) ** 2) for _ in range(50)]) - 1) < 0.1


def test_pink_noise_loses_three_decibels_an_octave():
    power = np.abs(np.fft.rfft(pink_noise(2**16, np.random.default_rng(0)))) ** 2
    octaves = [power[2**k : 2 ** (k + 1)].mean() for k in range(6, 15)]
    slopes = 10 * np.log10(np.array(octaves[1:]) / octaves[:-1])
    assert abs(slopes.mean() + 3.01) < 0.3


def test_find_asks_for_the_digit_in_the_cell_of_the_answer(root):
    data = av_find(root, seed=0).train
    for index in range(10):
        sample = data[index]
        cell, asked = int(sample.label), int(sample.auxiliary["audio"])
        row, column = divmod(cell, GRID)
        part = sample.inputs["image"][0, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        found = [
            (top, left) for top in range(5) for left in range(5) if part[top : top + 28, left : left + 28].sum() > 0
        ]
        images = {data._pixels[i].tobytes() for i in data._rows[asked]}
        assert any(part[t : t + 28, le : le + 28].numpy().tobytes() in images for t, le in found)


def test_find_names_the_digit_of_every_cell(root):
    data = av_find(root, seed=0).train
    sample = data[3]
    digits = sample.auxiliary["image"]
    assert data.questions["image"].cells == (GRID, GRID) and digits.shape == (GRID * GRID,)
    assert digits[sample.label] == sample.auxiliary["audio"]
    assert len(set(digits.tolist())) == GRID * GRID


def test_modality_that_is_not_made_changes_nothing_in_the_other(root):
    both = av_mnist(root, "hard").train[5]
    for name in ("image", "audio"):
        (found,) = av_mnist(root, "hard", only=[name]).train[5].inputs.items()
        assert found[0] == name and torch.equal(found[1], both.inputs[name])


def test_speech_at_another_ratio_is_in_the_same_noise(root):
    data = av_mnist(root, "hard").test
    drowned, quiet, loud = (data.at_snr(snr)[2].inputs["audio"].double() for snr in (-80, -60, -40))
    # waveform + g noise: the differences are the noise alone, at g of 10^4 - 10^3 and 10^3 - 10^2.
    torch.testing.assert_close(drowned - quiet, 10 * (quiet - loud), rtol=1e-3, atol=1.0)
    assert torch.equal(data[2].inputs["audio"], data.at_snr(-5.0)[2].inputs["audio"])


def test_sentence_of_a_string_names_its_digits(root):
    sample = digit_strings(root).train[0]
    symbols = [int(s) for s in sample.label if s > 0]
    assert "".join(SYMBOLS[s - 1] for s in symbols) == sample.name
    assert 3 <= len(sample.name.split()) <= 5
    words = [*LANGUAGES["en"].digits, ""]  # no digit is told to be 10
    assert [words[place] for place in sample.auxiliary["image"].tolist()] == [*sample.name.split(), "", ""][:5]


def test_damaged_idx_files_are_named(tmp_path):
    path = tmp_path / "x.gz"
    for content in (b"no gzip", gzip.compress(b"\x00\x00\x0d\x01"), b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=str(path)):
            read_idx(path)
    write_idx(path, np.zeros((3, 4)))
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ValueError, match="is damaged"):
        read_idx(path)


def test_missing_data_are_named_with_their_place(tmp_path):
    with pytest.raises(FileNotFoundError, match="mnist"):
        load_mnist(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="no recordings named like"):
        load_fsdd(tmp_path)


@pytest.mark.data
def test_real_data_have_their_known_size():
    root = real_root()
    assert [len(data) for data in av_mnist(root)[:3]] == [55_000, 5_000, 10_000]
    assert {part: len(rows) for part, rows in split_recordings(load_fsdd(root)).items()} == {
        "train": 2400,
        "validation": 300,
        "test": 300,
    }
