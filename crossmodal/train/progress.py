"""The line that an epoch prints, in the form that Keras made familiar."""

import sys
import time
from typing import TextIO

_BAR = 30


class EpochLine:
    """A progress bar that becomes the epoch's result:

        63/63 [==============================] - 3s 48ms/step - loss: 0.5476 - accuracy: 0.7704 - ...

    On a terminal the line is redrawn while the epoch runs; elsewhere it is printed once, at the end.

    Args:
        steps: of the epoch.
        stream: where to print; None is standard output.
    """

    _SECONDS_BETWEEN_DRAWS = 0.1

    def __init__(self, steps: int, stream: TextIO | None = None) -> None:
        self._steps = steps
        self._stream = stream or sys.stdout
        self._start = time.perf_counter()
        self._drawn = 0.0

    def update(self, step: int, **values: float) -> None:
        """Show that ``step`` steps are done."""
        now = time.perf_counter()
        if self._stream.isatty() and now - self._drawn > self._SECONDS_BETWEEN_DRAWS:
            self._drawn = now
            done = _BAR * step // self._steps
            bar = "=" * done + (">" if done < _BAR else "") + "." * (_BAR - done - 1)
            self._stream.write(f"\r{self._line(step, bar, values)}\x1b[K")
            self._stream.flush()

    def finish(self, **values: float) -> None:
        """Show the result and end the line."""
        start = "\r" if self._stream.isatty() else ""
        end = "\x1b[K\n" if self._stream.isatty() else "\n"
        self._stream.write(start + self._line(self._steps, "=" * _BAR, values) + end)
        self._stream.flush()

    def _line(self, step: int, bar: str, values: dict[str, float]) -> str:
        seconds = time.perf_counter() - self._start
        speed = f"{seconds:.0f}s {1000 * seconds / max(step, 1):.0f}ms/step"
        shown = [f"{name}: {value:.4f}" for name, value in values.items()]
        return " - ".join([f"{step}/{self._steps} [{bar}]", speed, *shown])
