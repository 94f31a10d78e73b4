"""Optional dependencies: import them where they are used, and name the extra that brings them."""

from importlib import import_module
from types import ModuleType


class MissingExtraError(ImportError):
    """An optional dependency is not installed; the message is one line and says how to get it."""


def require(module: str, *, distribution: str, extra: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: the name to import, ``"sklearn.datasets"``.
        distribution: what the package index calls it, ``"scikit-learn"``.
        extra: the extra of this package that installs it, ``"demo"``.

    Raises:
        MissingExtraError: when the module, or something that it needs, cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f'{distribution} is needed and cannot be imported ({error}): pip install "crossmodal[{extra}]"'
        ) from error
