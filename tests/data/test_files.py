"""Files of every kind, sound ones and broken ones."""

import struct

import numpy as np
import pytest
import torch

soundfile = pytest.importorskip("soundfile", reason="needs the extra train")
pytest.importorskip("soxr", reason="needs the extra train")
Image = pytest.importorskip("PIL.Image", reason="needs the extra train")

from crossmodal.data.audio_file import BrokenFileError, read_audio  # noqa: E402
from crossmodal.data.image_file import read_image  # noqa: E402

RATE = 8000
TONE = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)


def write(path, values, rate=RATE, subtype="PCM_16"):
    soundfile.write(path, values, rate, subtype=subtype)
    return path


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_any_sample_format_gives_the_same_sound(tmp_path, subtype):
    got = read_audio(write(tmp_path / "x.wav", TONE, subtype=subtype), RATE)
    assert got.dtype == torch.float32 and (got.numpy() - TONE).max() < 0.01


@pytest.mark.parametrize("name", ["x.flac", "x.ogg", "x.aiff"])
def test_any_container_is_read(tmp_path, name):
    soundfile.write(tmp_path / name, TONE, RATE)
    assert np.corrcoef(read_audio(tmp_path / name, RATE).numpy(), TONE)[0, 1] > 0.99


def test_channels_are_averaged(tmp_path):
    got = read_audio(write(tmp_path / "x.wav", np.stack([TONE, 0 * TONE], 1), subtype="FLOAT"), RATE)
    np.testing.assert_allclose(got, TONE / 2, atol=1e-6)


@pytest.mark.parametrize("rate", [44100, 16000, 4000])
def test_another_rate_is_resampled(tmp_path, rate):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    got = read_audio(write(tmp_path / "x.wav", tone, rate=rate), RATE).numpy()
    assert abs(len(got) - RATE) <= 1
    middle = slice(1000, 7000)  # the ends ring
    assert np.abs(got[middle] - TONE[middle]).max() < 0.02


def broken_sound(path, fault):
    if fault == "empty":
        path.write_bytes(b"")
    elif fault == "no sound":
        write(path, TONE[:0])
    elif fault == "no audio":
        path.write_bytes(b"RIFF but not really" * 10)
    elif fault == "truncated":
        write(path, TONE)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif fault == "header only":
        write(path, TONE)
        path.write_bytes(path.read_bytes()[:20])
    elif fault == "nan":
        write(path, np.where(np.arange(RATE) == 100, np.nan, TONE), subtype="FLOAT")
    elif fault == "inf":
        write(path, np.where(np.arange(RATE) == 100, np.inf, TONE), subtype="FLOAT")


@pytest.mark.parametrize("fault", ["empty", "no sound", "no audio", "header only", "nan", "inf"])
def test_broken_sound_is_named(tmp_path, fault):
    path = tmp_path / "x.wav"
    broken_sound(path, fault)
    with pytest.raises(BrokenFileError, match=str(path)):
        read_audio(path, RATE)


def test_truncated_sound_is_named(tmp_path):
    """libsndfile trusts the size of a cut WAV file; the header still tells what was promised."""
    path = tmp_path / "x.wav"
    broken_sound(path, "truncated")
    with pytest.raises(BrokenFileError, match="truncated"):
        read_audio(path, RATE)


def test_sound_that_is_too_long_is_refused_before_it_is_read(tmp_path):
    path = write(tmp_path / "x.wav", TONE)
    with pytest.raises(BrokenFileError, match="at most 0 s is read"):
        read_audio(path, RATE, longest_seconds=0.25)


def test_sound_whose_mean_overflows_is_named(tmp_path):
    loud = np.full((RATE, 2), 3e38)
    with pytest.raises(BrokenFileError, match=r"x\.wav: values up to 3\.0e\+38 overflow float32"):
        read_audio(write(tmp_path / "x.wav", loud, subtype="FLOAT"), RATE)


def test_sound_that_overflows_when_resampled_is_named(tmp_path):
    loud = np.where(np.arange(RATE) % 20 < 10, 3.4e38, -3.4e38)
    with pytest.raises(BrokenFileError, match=r"x\.wav: values up to"):
        read_audio(write(tmp_path / "x.wav", loud, subtype="FLOAT"), 2 * RATE)


def test_sound_of_less_than_a_sample_is_named(tmp_path):
    path = write(tmp_path / "x.wav", TONE[:1], rate=192000)
    with pytest.raises(BrokenFileError, match=r"x\.wav: 1 frames at 192000 Hz are less than one at 8000 Hz"):
        read_audio(path, RATE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_image_of_floats_that_are_not_finite_is_named(tmp_path, value):
    Image.fromarray(np.full((20, 30), value, np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(BrokenFileError, match=r"x\.tif: holds NaN or Inf"):
        read_image(tmp_path / "x.tif", (3, 8, 8))


def save(path, mode, **options):
    values = np.zeros((20, 30, 3), np.uint8)
    values[:, 15:] = (255, 0, 0)
    Image.fromarray(values).convert(mode).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "mode"),
    [("x.jpg", "CMYK"), ("x.png", "P"), ("x.gif", "P"), ("x.png", "RGB"), ("x.png", "RGBA"), ("x.jpg", "RGB")],
)
def test_any_colour_mode_gives_the_same_picture(tmp_path, name, mode):
    pixels = read_image(save(tmp_path / name, mode), (3, 10, 10))
    assert pixels.shape == (3, 10, 10) and pixels.dtype == torch.float32
    assert (pixels[0, :, 9] > 0.9).all() and (pixels[1:, :, 9] < 0.15).all() and (pixels[:, :, 0] < 0.1).all()


def test_grey_of_sixteen_bits_keeps_its_range(tmp_path):
    values = np.linspace(0, 65535, 100, dtype=np.uint16).reshape(10, 10)
    Image.fromarray(values).save(tmp_path / "x.png")
    pixels = read_image(tmp_path / "x.png", (1, 10, 10))
    np.testing.assert_allclose(pixels[0], values / 65535, atol=0.01)


def test_transparent_pixels_are_white(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "x.png")
    assert (read_image(tmp_path / "x.png", (3, 8, 8)) == 1).all()


def test_orientation_of_the_camera_is_obeyed(tmp_path):
    image = Image.new("L", (8, 8), 0)
    image.paste(255, (0, 0, 8, 4))  # upper half
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "x.png", exif=exif)
    assert read_image(tmp_path / "x.png", (1, 8, 8))[0, :4].mean() < 0.1


@pytest.mark.parametrize("fault", ["empty", "no image", "truncated", "bad chunk"])
def test_broken_image_is_named(tmp_path, fault):
    path = save(tmp_path / "x.png", "RGB")
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "no image": b"GIF87a?",
            "truncated": whole[:-30],
            "bad chunk": whole[:40] + b"?" * 20 + whole[60:],
        }[fault]
    )
    with pytest.raises(BrokenFileError, match=str(path)):
        read_image(path, (3, 8, 8))


def test_huge_image_is_refused_before_it_is_decoded(tmp_path):
    """A PNG of a few bytes that claims a hundred thousand pixels squared."""
    path = save(tmp_path / "x.png", "RGB")
    whole = bytearray(path.read_bytes())
    whole[16:24] = struct.pack(">II", 100_000, 100_000)
    import zlib

    whole[29:33] = struct.pack(">I", zlib.crc32(bytes(whole[12:29])))
    path.write_bytes(whole)
    with pytest.raises(BrokenFileError, match=str(path)):
        read_image(path, (3, 8, 8))
    with pytest.raises(BrokenFileError, match="at most 100 are read"):
        read_image(save(tmp_path / "y.png", "RGB"), (3, 8, 8), largest_pixels=100)


@pytest.mark.parametrize("read", [lambda path: read_audio(path, RATE), lambda path: read_image(path, (3, 8, 8))])
def test_file_that_is_not_there_is_named(tmp_path, read):
    with pytest.raises(FileNotFoundError, match=r"nothing\.x: no such file"):
        read(tmp_path / "nothing.x")
