"""References compute in the dtypes that their problems have."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

_Run = TypeVar("_Run", bound=Callable[..., Any])


def without_autocast(run: _Run) -> _Run:
    """A function of a checked problem, whose operands are cast already, without autocast.

    It would cast float32 products back, and the largest float16 is 65504.
    """

    @functools.wraps(run)
    def wrapped(problem: Any, *args: Any, **kwargs: Any) -> Any:
        device = problem[0].device.type
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return run(problem, *args, **kwargs)
        with torch.autocast(device, enabled=False):
            return run(problem, *args, **kwargs)

    return wrapped  # type: ignore[return-value]
