"""Data sets by name."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from crossmodal.data.av_find import av_find
from crossmodal.data.av_mnist import av_mnist
from crossmodal.data.digit_strings import digit_strings
from crossmodal.data.digits import digits
from crossmodal.data.manifest import make_options, manifest_splits
from crossmodal.data.sample import Splits

NAMES = ("digits", "avmnist", "avmnist-speaker", "avmnist-hard", "avfind", "avfind-text", "digit-strings")


def open_data(
    name: str,
    root: Path | None = None,
    *,
    seed: int = 0,
    strict: bool = False,
    options: dict[str, Any] | None = None,
    only: Collection[str] | None = None,
) -> Splits:
    """The splits of a data set.

    Args:
        name: one of :data:`NAMES`, or the path of a manifest.
        root: the folder of the recorded data; of a manifest, what its paths are relative to (None: its own folder).
        seed: of what is drawn in training; for ``avmnist-speaker`` also which speakers are held out.
        strict: see :class:`crossmodal.data.manifest.ManifestOptions`.
        options: of a manifest; see :func:`crossmodal.data.manifest.make_options`.
        only: modalities that will be used; a data set may spare itself the others. None for all.

    Raises:
        MissingExtraError: when a package that the data need is not installed.
        FileNotFoundError: when data are missing, with the place where they were looked for.
        ValueError: when they are damaged, ``root`` is missing where it is needed, or for unknown options.
    """
    if name == "digits":
        return digits(seed)
    if name not in NAMES:
        return manifest_splits(Path(name), root, make_options(options or {}, strict=strict), seed=seed)
    if root is None:
        raise ValueError(f"root must be the folder with mnist and free-spoken-digit-dataset for {name}, got None")
    if name == "digit-strings":
        return digit_strings(root, seed=seed)
    if name.startswith("avfind"):
        return av_find(root, "text" if name == "avfind-text" else "audio", seed=seed)
    variant: Any = {"avmnist": "clean", "avmnist-speaker": "speaker", "avmnist-hard": "hard"}[name]
    return av_mnist(root, variant, seed=seed, fold=seed % 6, only=only)
