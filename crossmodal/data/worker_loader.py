"""torch's DataLoader, with what goes wrong in a worker said as it would be without one."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from crossmodal.data.audio_file import BrokenFileError


class WorkerLoader(DataLoader[Any]):
    """Errors of files have the message that they had in the worker, without its traceback.

    A worker may die while it hands over a batch; then it is the connection that torch misses, which is a RuntimeError
    here as in all other cases.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except BrokenFileError as error:
            raise BrokenFileError(_in_worker(error)) from None
        except FileNotFoundError as error:
            raise FileNotFoundError(_in_worker(error)) from None
        except (ConnectionError, EOFError) as error:
            raise RuntimeError("a DataLoader worker exited unexpectedly while it handed over a batch") from error


def _in_worker(error: Exception) -> str:
    """Where torch has put a traceback into the message, the last line of that."""
    text = str(error)
    return text.strip().splitlines()[-1].partition(": ")[2] if "Original Traceback" in text else text
