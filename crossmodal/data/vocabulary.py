"""Words and their numbers."""

from collections.abc import Iterable

import torch
from torch import Tensor

from crossmodal.data.number_words import LANGUAGES


class Vocabulary:
    """Numbers the words of a closed list; every other word is "unknown".

    Args:
        words: the known words; order and repetition do not matter.

    Attributes:
        padding: the number of "no word", 0.
        unknown: the number of every word not in the list, 1.
    """

    padding = 0
    unknown = 1

    def __init__(self, words: Iterable[str]) -> None:
        self.words = sorted(set(words))
        self._numbers = {word: number for number, word in enumerate(self.words, start=2)}

    def __len__(self) -> int:
        return len(self.words) + 2

    def encode(self, words: Iterable[str]) -> Tensor:
        """``(number of words,)`` int64."""
        return torch.tensor([self._numbers.get(word, self.unknown) for word in words])


def number_sentence_vocabulary() -> Vocabulary:
    """Every word that a sentence of :mod:`crossmodal.data.sentences` can hold before it is damaged."""
    words: set[str] = {","}
    for language in LANGUAGES.values():
        words.update(language.digits)
        for clause in language.affirming + language.denying:
            words.update(clause.replace("{}", "").split())
    return Vocabulary(words)
