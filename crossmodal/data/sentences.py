"""Sentences about a digit: one clause affirms it, one or two others deny other digits, in any order.

A bag of words cannot tell which digit is meant; the order of the words can.
"""

import zlib
from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np

from crossmodal.data.number_words import LANGUAGES

_T = TypeVar("_T")
Split = Literal["train", "validation", "test"]

_ALPHABET = "abcdefghijklmnopqrstuvwxyz"
_LANGUAGES = tuple(LANGUAGES.values())


def _pick(options: Sequence[_T], rng: np.random.Generator) -> _T:
    return options[int(rng.integers(len(options)))]  # rng.choice is ten times slower


def compose_sentence(digit: int, rng: np.random.Generator) -> list[str]:
    """A clean sentence in a random language that affirms ``digit``; clauses are joined by ``","``."""
    language = _pick(_LANGUAGES, rng)
    others = [other for other in range(10) if other != digit]
    clauses = [_pick(language.affirming, rng).format(language.digits[digit])]
    for _ in range(int(rng.integers(1, 3))):
        denied = others.pop(int(rng.integers(len(others))))
        clauses.append(_pick(language.denying, rng).format(language.digits[denied]))
    order = rng.permutation(len(clauses))
    return " , ".join(clauses[index] for index in order).split()


def split_of_sentence(words: list[str]) -> Split:
    """The one split that may use this clean sentence: 80 % train, 10 % validation, 10 % test.

    A checksum of the text decides, so that no list of used sentences has to be kept.
    """
    bucket = zlib.crc32(" ".join(words).encode()) % 10
    return "validation" if bucket == 8 else "test" if bucket == 9 else "train"


def compose_sentence_of(split: Split, digit: int, rng: np.random.Generator) -> list[str]:
    """Like :func:`compose_sentence`, drawn again until the sentence belongs to ``split``."""
    while split_of_sentence(words := compose_sentence(digit, rng)) != split:
        pass
    return words


def misspell(word: str, rng: np.random.Generator) -> str:
    """One slip of the finger: a letter left out, doubled, replaced, or swapped with the next one."""
    at = int(rng.integers(len(word)))
    slip = rng.integers(4)
    if slip == 0 and len(word) > 1:
        return word[:at] + word[at + 1 :]
    if slip == 1:
        return word[: at + 1] + word[at:]
    if slip == 2 and at + 1 < len(word) and word[at] != word[at + 1]:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    others = [letter for letter in _ALPHABET if letter != word[at]]
    return word[:at] + _pick(others, rng) + word[at + 1 :]


def damage_sentence(words: list[str], rng: np.random.Generator, *, drop: float, typo: float) -> list[str]:
    """Lose some words and misspell others; one word always stays.

    Args:
        words: a clean sentence.
        drop: the share of words left out, in [0, 1].
        typo: the share of the remaining words that get a slip, in [0, 1].
    """
    kept = [word for word in words if rng.random() >= drop] or [_pick(words, rng)]
    return [misspell(word, rng) if rng.random() < typo else word for word in kept]
