"""Text to token numbers, learned from a corpus, by Hugging Face's tokenizers."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossmodal._extras import require

PADDING, UNKNOWN = "[PAD]", "[UNK]"
MODELS = ("word", "bpe")
_SIGNS = '[.,;:!?()"]'  # that end words or stand around them; an apostrophe may be a part of one


class Tokenizer:
    """Words or parts of words to numbers; 0 is padding, 1 is "unknown".

    Text is normalised (NFKC, lower case) and split at white space and punctuation.

    Args:
        text: JSON, of :attr:`json`. What it says of padding does not count: batches are padded elsewhere.
        stop_words: words that are left out, in lower case.

    Raises:
        MissingExtraError: when tokenizers is not installed.
        ValueError: when the JSON describes no tokenizer.
    """

    def __init__(self, text: str, stop_words: Iterable[str] = ()) -> None:
        library = require("tokenizers", distribution="tokenizers", extra="train")
        try:
            self._tokenizer = library.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"text must be the JSON of a tokenizer: {error}") from error
        self._tokenizer.no_padding()
        self.stop_words = frozenset(stop_words)

    def __len__(self) -> int:
        count: int = self._tokenizer.get_vocab_size()
        return count

    @property
    def json(self) -> str:
        """All of it but the stop words, for :class:`Tokenizer`."""
        text: str = self._tokenizer.to_str()
        return text

    @property
    def words(self) -> list[str]:
        """All tokens, in the order of their numbers."""
        numbers: dict[str, int] = self._tokenizer.get_vocab()
        return sorted(numbers, key=numbers.__getitem__)

    def encode(self, text: str) -> Tensor:
        """``(tokens,)`` int64; none for an empty text, or one of nothing but stop words."""
        return torch.tensor([number for number, _ in self._numbered(text)], dtype=torch.int64)

    def tokens(self, text: str) -> list[str]:
        """The same, to read."""
        return [token for _, token in self._numbered(text)]

    def _numbered(self, text: str) -> list[tuple[int, str]]:
        """Without the padding of this class, which a closed list has for what it does not know."""
        encoding = self._encoding(text)
        pairs = zip(encoding.ids, encoding.tokens, strict=True)
        return [(number, token) for number, token in pairs if (number, token) != (0, PADDING)]

    def _encoding(self, text: str) -> Any:
        if self.stop_words:
            text = self._without_stop_words(text)
        if not text.strip():  # some tokenizers add tokens of their own to any text; nothing stays nothing
            return self._tokenizer.encode("", add_special_tokens=False)
        return self._tokenizer.encode(text)

    def _without_stop_words(self, text: str) -> str:
        """What is left, as it stands in the text: pieces are not always written so, such as those of bytes."""
        tokenizer = self._tokenizer
        whole = text if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str(text)
        if tokenizer.pre_tokenizer is None:
            spans = [word.span() for word in re.finditer(r"\S+", whole)]
        else:
            spans = [span for _, span in tokenizer.pre_tokenizer.pre_tokenize_str(whole)]
        left_out = [(start, end) for start, end in spans if whole[start:end].strip().lower() in self.stop_words]
        if not left_out:
            return text
        kept, begin = "", 0
        for start, end in [*left_out, (len(whole), len(whole))]:
            part = whole[begin:start]
            # What a word stood between stays apart.
            apart = kept and part and not kept[-1].isspace() and not part[0].isspace()
            kept, begin = f"{kept}{' ' if apart else ''}{part}", end
        return kept.strip()


def train_tokenizer(
    corpus: Iterable[str], *, vocabulary: int = 8000, model: str = "word", stop_words: Iterable[str] = ()
) -> Tokenizer:
    """A tokenizer of the most frequent words, or byte-pair parts of words (Sennrich et al., arXiv 1508.07909).

    Args:
        corpus: texts.
        vocabulary: how many numbers at most, padding and unknown among them.
        model: ``"word"``, whole words, or ``"bpe"``, parts.
        stop_words: words that are left out.

    Raises:
        MissingExtraError: when tokenizers is not installed.
        ValueError: for another ``model``.
    """
    if model not in MODELS:
        raise ValueError(f"tokens must be one of {', '.join(MODELS)} or end in .json, got {model!r}")
    library = require("tokenizers", distribution="tokenizers", extra="train")
    normalizers, splits = library.normalizers, library.pre_tokenizers
    make = library.models.WordLevel if model == "word" else library.models.BPE
    tokenizer = library.Tokenizer(make(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = splits.Sequence([splits.WhitespaceSplit(), splits.Punctuation()])
    trainer_of = library.trainers.WordLevelTrainer if model == "word" else library.trainers.BpeTrainer
    trainer = trainer_of(vocab_size=vocabulary, special_tokens=[PADDING, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    return Tokenizer(tokenizer.to_str(), stop_words)


def read_tokenizer(path: Path, stop_words: Iterable[str] = ()) -> Tokenizer:
    """A tokenizer as Hugging Face's libraries save it, ``tokenizer.json``.

    Raises:
        MissingExtraError: when tokenizers is not installed.
        FileNotFoundError: when there is no such file.
        ValueError: when it is something else.
    """
    try:
        return Tokenizer(path.read_text(encoding="utf-8"), stop_words)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such tokenizer") from None
    except ValueError as error:
        raise ValueError(f"{path} holds no tokenizer: {error}") from error


def tokenizer_of(words: Iterable[str], *, letters: bool = False, unknown: bool = True) -> Tokenizer:
    """A tokenizer of a closed list: 0 is padding, 1 "unknown" where there is one, and then the words in their order.

    Punctuation is split off words.

    Args:
        words: all that are known.
        letters: they are single letters; texts are spelt.
        unknown: whether a number is kept for everything else; without it, it is left out.

    Raises:
        MissingExtraError: when tokenizers is not installed.
    """
    library = require("tokenizers", distribution="tokenizers", extra="train")
    special = [PADDING, UNKNOWN] if unknown else [PADDING]
    numbers = {word: number for number, word in enumerate([*special, *words])}
    tokenizer = library.Tokenizer(library.models.WordLevel(numbers, unk_token=UNKNOWN if unknown else PADDING))
    tokenizer.normalizer = library.normalizers.Lowercase()
    splits, pattern = library.pre_tokenizers, library.Regex
    tokenizer.pre_tokenizer = (
        splits.Split(pattern(r"[\s\S]"), "isolated")
        if letters
        else splits.Sequence([splits.Split(pattern(r"\s+"), "removed"), splits.Split(pattern(_SIGNS), "isolated")])
    )
    return Tokenizer(tokenizer.to_str())
