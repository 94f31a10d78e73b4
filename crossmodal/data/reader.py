"""From the cells of a table to the inputs of a model, in training and in prediction alike."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from crossmodal.data.audio_file import read_audio
from crossmodal.data.augment_audio import AudioAugment
from crossmodal.data.augment_image import ImageAugment
from crossmodal.data.augment_text import TextAugment
from crossmodal.data.image_file import read_image
from crossmodal.data.sample import Modality
from crossmodal.data.tokenizer import Tokenizer, read_tokenizer, tokenizer_of, train_tokenizer


@dataclass(frozen=True)
class ReaderOptions:
    """How files and texts are read.

    Attributes:
        image_size: channels, height, width that every image is brought to.
        sample_rate: that every sound is brought to, in Hz.
        vocabulary, tokens, stop_words: of the tokenizer; see :func:`train_tokenizer`. ``tokens`` may be the path of a
            ``tokenizer.json``, such as a pretrained text encoder comes with: nothing is learnt then.
        crop, flip, erase: see :class:`ImageAugment`; in training only.
        gain_db, snr_db: see :class:`AudioAugment`; in training only.
        drop_tokens: see :class:`TextAugment`; in training only.
    """

    image_size: tuple[int, int, int] = (3, 64, 64)
    sample_rate: int = 16000
    vocabulary: int = 8000
    tokens: str = "word"
    stop_words: tuple[str, ...] = ()
    crop: float = 1.0
    flip: bool = False
    erase: float = 0.0
    gain_db: float = 0.0
    snr_db: tuple[float, float] | None = None
    drop_tokens: float = 0.0


class Reader:
    """Reads cells.

    Args:
        columns: which modalities there are.
        options: how they are read.
        tokenizer: of the texts; None until :meth:`learn_tokens`.
    """

    def __init__(self, columns: Sequence[str], options: ReaderOptions, tokenizer: Tokenizer | None = None) -> None:
        self.columns, self.options, self.tokenizer = tuple(columns), options, tokenizer
        self._augment: dict[str, Any] = {
            "image": ImageAugment(options.crop, options.flip, options.erase),
            "audio": AudioAugment(options.gain_db, options.snr_db and tuple(options.snr_db)),  # type: ignore[arg-type]
            "text": TextAugment(options.drop_tokens),
        }

    @property
    def modalities(self) -> dict[str, Modality]:
        """What the inputs look like."""
        channels, height, width = self.options.image_size
        known = {
            "image": Modality("image", size=(channels, height, width)),
            "audio": Modality("audio", sample_rate=self.options.sample_rate),
            "text": Modality("text", vocabulary=max(2, len(self.tokenizer) if self.tokenizer else 0)),
        }
        return {name: known[name] for name in self.columns}

    def learn_tokens(self, texts: Iterable[str]) -> None:
        """Learn the tokenizer, where there is a column of texts."""
        if "text" in self.columns:
            options = self.options
            if options.tokens.endswith(".json"):
                self.tokenizer = read_tokenizer(Path(options.tokens), options.stop_words)
                return
            self.tokenizer = train_tokenizer(
                texts, vocabulary=options.vocabulary, model=options.tokens, stop_words=options.stop_words
            )

    def read(self, column: str, cell: str, root: Path, content: bytes | None = None) -> Tensor:
        """The input that a cell stands for.

        Args:
            column: its modality.
            cell: a path, or a text.
            root: what the path is relative to.
            content: of the file, where it is not on disk.

        Raises:
            FileNotFoundError: when there is no such file.
            BrokenFileError: when it cannot be used.
        """
        if column == "image":
            return read_image(root / cell, self.options.image_size, content=content)
        if column == "audio":
            return read_audio(root / cell, self.options.sample_rate, content=content)
        if self.tokenizer is None:
            raise ValueError("text cannot be read before the tokenizer is learnt")
        return self.tokenizer.encode(cell)

    def augment(self, column: str, values: Tensor, rng: Any) -> Tensor:
        """A random change, for training."""
        changed: Tensor = self._augment[column](values, rng)
        return changed

    def as_dict(self) -> dict[str, Any]:
        """For :func:`reader_from`; ready for JSON."""
        fields = {field.name: getattr(self.options, field.name) for field in dataclasses.fields(ReaderOptions)}
        return {"columns": list(self.columns), "options": fields, "tokenizer": self.tokenizer and self.tokenizer.json}


def make_reader(rows: Iterable[Mapping[str, str]], options: ReaderOptions) -> Reader:
    """A reader of the columns that hold anything at all, in the order image, audio, text."""
    present = {name for cells in rows for name in cells}
    return Reader([name for name in ("image", "audio", "text") if name in present], options)


def describe_reader(modalities: Mapping[str, Modality], words: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What :func:`reader_from` makes a reader of, for data that are not read from cells in training.

    Args:
        modalities: of the data set, named image, audio and text.
        words: arguments of :func:`tokenizer_of`, for text.
    """
    sizes: dict[str, Any] = {}
    if "image" in modalities:
        sizes["image_size"] = list(modalities["image"].size or ())
    if "audio" in modalities:
        sizes["sample_rate"] = modalities["audio"].sample_rate
    return {"columns": list(modalities), "options": sizes, "tokenizer": None, "words": words}


def reader_from(values: Mapping[str, Any]) -> Reader:
    """The inverse of :meth:`Reader.as_dict` and of :func:`describe_reader`.

    Raises:
        MissingExtraError: when there is text, and tokenizers is not installed.
    """
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values["options"].items()
    }
    made = ReaderOptions(**options)
    tokenizer = None
    if values["tokenizer"]:
        tokenizer = Tokenizer(values["tokenizer"], made.stop_words)
    elif values.get("words"):
        tokenizer = tokenizer_of(**values["words"])
    return Reader(values["columns"], made, tokenizer)
