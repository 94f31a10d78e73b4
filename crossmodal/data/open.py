"""Data sets by name."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from crossmodal.data.av_find import av_find
from crossmodal.data.av_mnist import av_mnist
from crossmodal.data.digit_strings import digit_strings
from crossmodal.data.digits import digits
from crossmodal.data.manifest import Part, make_options, manifest_part, manifest_splits
from crossmodal.data.reader import reader_from
from crossmodal.data.sample import Dataset, Splits

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
        return manifest_splits(Path(name), root, make_options(options or {}, strict=strict), seed=seed, only=only)
    if root is None:
        raise ValueError(f"root must be the folder with mnist and free-spoken-digit-dataset for {name}, got None")
    if name == "digit-strings":
        return digit_strings(root, seed=seed)
    if name.startswith("avfind"):
        return av_find(root, "text" if name == "avfind-text" else "audio", seed=seed)
    variant: Any = {"avmnist": "clean", "avmnist-speaker": "speaker", "avmnist-hard": "hard"}[name]
    return av_mnist(root, variant, seed=seed, fold=seed % 6, only=only)


def open_part(
    name: str,
    root: Path | None,
    split: str | None,
    *,
    reader: Mapping[str, Any],
    classes: Sequence[str] | None,
    only: Collection[str],
    seed: int = 0,
    strict: bool = False,
    options: dict[str, Any] | None = None,
) -> Part:
    """One split of a data set for a trained model.

    Args:
        name, root, seed, strict, options: see :func:`open_data`.
        split: ``train``, ``validation`` or ``test``; of a manifest also ``all``. None: ``test``, or all of a manifest
            in which no row names a split.
        reader: how the model's inputs are read; see :func:`crossmodal.data.reader.reader_from`.
        classes, only: of the model: its classes, None where it has none, and its modalities.

    Raises:
        MissingExtraError, FileNotFoundError, ValueError: see :func:`open_data`; also for data of other classes, or
            without one of the modalities.
    """
    if name not in NAMES:
        made = make_options(options or {}, strict=strict)
        return manifest_part(Path(name), root, made, split, reader=reader_from(reader), classes=classes, only=only)
    if split == "all":
        raise ValueError(f"split must be train, validation or test for {name}, got 'all'")
    split = split or "test"
    dataset: Dataset = getattr(open_data(name, root, seed=seed, only=only), split)
    if missing := [modality for modality in only if modality not in dataset.modalities]:
        raise ValueError(
            f"data must have the modalities of the run, {', '.join(only)}; {name} has {', '.join(dataset.modalities)}, "
            f"no {', '.join(missing)}"
        )
    if classes is not None and tuple(classes) != tuple(dataset.classes):
        raise ValueError(f"data must have the classes of the run, {list(classes)}, got {list(dataset.classes)}")
    return Part(dataset, split, [])
