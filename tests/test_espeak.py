"""The speech synthesiser: same calls, same samples; whatever is broken is named; Ctrl-C gets through."""

import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.random import mtrand

espeakng_loader = pytest.importorskip("espeakng_loader", reason="needs the extra demo")

from crossmodal.data.espeak import Espeak, EspeakError  # noqa: E402


def test_fresh_synthesisers_say_the_same():
    """Sound that flutters (en) and sound with noise in it (whisper) repeats too."""
    calls = [("three", "en"), ("sieben", "de+f2"), ("three", "en+whisper"), ("three", "en")]
    runs = []
    for _ in range(2):
        with Espeak() as espeak:
            runs.append([espeak.say(text, voice=voice) for text, voice in calls])
    assert all(np.array_equal(first, second) for first, second in zip(*runs, strict=True))


def test_rate_is_the_speed_of_speech():
    with Espeak() as espeak:
        slow, fast = (len(espeak.say("seven", voice="en", rate=rate)) for rate in (100, 300))
    assert slow > 1.5 * fast


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.99])
def test_truncated_library_is_an_error_and_no_crash(tmp_path, share):
    whole = Path(espeakng_loader.get_library_path()).read_bytes()
    broken = tmp_path / "libespeak-ng.so"
    broken.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(EspeakError, match=str(broken)):
        Espeak(library=broken)


def test_absent_library_is_named(tmp_path):
    with pytest.raises(EspeakError, match=r"nowhere\.so"):
        Espeak(library=tmp_path / "nowhere.so")


def test_another_library_is_refused():
    with pytest.raises(EspeakError, match="not eSpeak NG"):
        Espeak(library=mtrand.__file__)


def test_absent_data_is_named(tmp_path):
    with pytest.raises(EspeakError, match=str(tmp_path)):
        Espeak(data=tmp_path)


def test_unknown_voice_is_named():
    with Espeak() as espeak, pytest.raises(EspeakError, match="no voice 'xx'"):
        espeak.say("one", voice="xx")


def test_closed_synthesiser_says_so():
    espeak = Espeak()
    espeak.close()
    espeak.close()
    with pytest.raises(EspeakError, match="closed"):
        espeak.say("one", voice="en")


def test_private_copy_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    library = shutil.copy(espeakng_loader.get_library_path(), tmp_path / "library.so")
    with Espeak(library=library):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["library.so"]


def test_interrupt_while_speaking_is_raised():
    """It arrives inside the callback from C, where ctypes would swallow it."""
    # A shell starts background jobs with SIGINT ignored, and Python then leaves it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
    with Espeak() as espeak, pytest.raises(KeyboardInterrupt):
        timer.start()
        for _ in range(20_000):
            espeak.say("one two three four five", voice="en")
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
