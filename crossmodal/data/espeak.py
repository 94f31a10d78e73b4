"""eSpeak NG, the speech synthesiser, called in this process through ctypes.

The library ships inside the ``espeakng-loader`` wheel, so that speech comes from a pip install. Only the
few functions below are used; their C signatures are those of ``speak_lib.h``.
"""

import _ctypes
import ctypes
import shutil
import signal
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

import numpy as np
from numpy.typing import NDArray

from crossmodal._extras import require

_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000  # without it a missing data folder ends the process
_RATE, _PITCH = 1, 3  # espeak_PARAMETER
_CHARS_UTF8 = 1

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class EspeakError(RuntimeError):
    """The speech library is absent, broken, or refused a request."""


class Espeak:
    """A speech synthesiser whose sound depends on nothing but the calls made on it.

    eSpeak keeps the phase of its pitch flutter in C statics that neither ``espeak_Terminate`` nor a seed
    resets: the same word differs from call to call. Each instance therefore loads a private copy of the
    library, seeds it, and unloads it at the end; the n-th call of every fresh instance then gives the
    same samples, in any process. Not thread-safe; use one instance per thread.

    Args:
        library: path of ``libespeak-ng``; None takes the one of ``espeakng-loader``.
        data: path of ``espeak-ng-data``; None takes the one of ``espeakng-loader``.

    Raises:
        MissingExtraError: when a path is left out and ``espeakng-loader`` is not installed.
        EspeakError: when the library cannot be loaded or does not start.
    """

    def __init__(self, library: str | Path | None = None, data: str | Path | None = None) -> None:
        if library is None or data is None:
            loader = require("espeakng_loader", distribution="espeakng-loader", extra="demo")
            library = loader.get_library_path() if library is None else library
            data = loader.get_data_path() if data is None else data
        self._library: ctypes.CDLL | None = _load_private_copy(Path(library))
        self._samples: list[NDArray[np.int16]] = []
        # The C side keeps the pointer: the callback object must live as long as the library.
        self._callback = _Callback(self._collect)
        self.sample_rate = self._start(Path(data))

    def _start(self, data: Path) -> int:
        library = self._handle()
        try:
            rate = library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, str(data).encode(), _INITIALIZE_DONT_EXIT)
            library.espeak_SetSynthCallback(self._callback)
        except AttributeError as error:
            self._unload()
            raise EspeakError(f"this is not eSpeak NG: {error}") from error
        if rate <= 0:
            self._unload()
            raise EspeakError(f"eSpeak NG does not start with the data in {data} (code {rate})")
        if hasattr(library, "espeak_ng_SetRandSeed"):  # 1.52 seeds its noise from the clock
            library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        return int(rate)

    def say(self, text: str, *, voice: str, rate: int = 175, pitch: int = 50) -> NDArray[np.int16]:
        """Speak ``text``.

        Args:
            text: what to say, in the voice's language.
            voice: a language, or a language and a variant: ``"de"``, ``"en+f2"``.
            rate: words per minute, 80 to 450.
            pitch: 0 to 99, 50 is the voice's own.

        Returns:
            ``(samples,)`` int16 at :attr:`sample_rate` Hz.

        Raises:
            EspeakError: for an unknown voice, and when nothing could be spoken.
        """
        library = self._handle()
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise EspeakError(f"eSpeak NG has no voice {voice!r}")
        library.espeak_SetParameter(_RATE, rate, 0)
        library.espeak_SetParameter(_PITCH, pitch, 0)
        self._samples.clear()
        encoded = text.encode()
        with _interrupt_deferred():
            code = library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded) + 1), 0, 0, 0, _CHARS_UTF8, None, None)
        if code != 0 or not self._samples:
            raise EspeakError(f"eSpeak NG cannot say {text!r} with voice {voice!r} (code {code})")
        return np.concatenate(self._samples)

    def _collect(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, _: int) -> int:
        if samples and count > 0:  # the buffer is eSpeak's and is reused after this call
            self._samples.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def _handle(self) -> ctypes.CDLL:
        if self._library is None:
            raise EspeakError("this synthesiser is closed")
        return self._library

    def close(self) -> None:
        """Free the library; a second call does nothing."""
        if self._library is not None:
            self._library.espeak_Terminate()
            self._unload()

    def _unload(self) -> None:
        if self._library is not None:
            _ctypes.dlclose(self._library._handle)
            self._library = None

    def __enter__(self) -> "Espeak":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@contextmanager
def _interrupt_deferred() -> Iterator[None]:
    """Ctrl-C comes after the block: raised inside a callback, ctypes would print and forget it."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    caught: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: caught.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if caught:
        handler(*caught[0])


def _load_private_copy(path: Path) -> ctypes.CDLL:
    try:
        with tempfile.TemporaryDirectory() as folder:
            copy = shutil.copy(path, folder)
            _refuse_truncated_elf(Path(copy), path)
            return ctypes.CDLL(copy)  # mapped: the file may go
    except OSError as error:
        raise EspeakError(f"cannot load the eSpeak NG library {path}: {error}") from error


def _refuse_truncated_elf(copy: Path, path: Path) -> None:
    """Mapping a cut-off ELF file ends in SIGBUS, which no ``except`` can catch.

    The section headers lie at the end of the file, so its header tells how long it has to be.
    """
    header = copy.read_bytes()[:64]
    if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":  # 64-bit, little-endian
        return
    (section_offset,) = struct.unpack_from("<Q", header, 0x28)
    entry_size, entries = struct.unpack_from("<HH", header, 0x3A)
    wanted, found = section_offset + entry_size * entries, copy.stat().st_size
    if found < wanted:
        raise EspeakError(f"{path} is cut off: {found} bytes where its header says {wanted}")
