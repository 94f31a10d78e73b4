"""How far a run is."""

from types import TracebackType
from typing import Any

from crossmodal._extras import require


class Progress:
    """Says nothing; what is measured and how far it got are told to the subclass that draws."""

    def start(self, total: int) -> None:
        """So many steps are ahead."""

    def describe(self, what: str) -> None:
        """This is being done."""

    def advance(self, steps: int = 1) -> None:
        """So much more is done."""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class ProgressBar(Progress):
    """A bar on the terminal; elsewhere rich prints nothing until the end.

    It moves only between cases: a thread that redraws would take time from what is being measured.

    Args:
        console: of rich; standard error, so that the table alone goes where output is sent.

    Raises:
        MissingExtraError: when rich is not installed.
    """

    def __init__(self, console: Any) -> None:
        rich = require("rich.progress", distribution="rich", extra="bench")
        self._bar = rich.Progress(
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TimeElapsedColumn(),
            rich.TextColumn("{task.description}"),
            console=console,
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task("measuring the machine's peaks", total=None)

    def start(self, total: int) -> None:
        self._bar.update(self._task, total=total)

    def describe(self, what: str) -> None:
        self._bar.update(self._task, description=what)
        self._bar.refresh()

    def advance(self, steps: int = 1) -> None:
        self._bar.advance(self._task, steps)
        self._bar.refresh()

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
