"""Random changes of a text that leave most of its meaning alone."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class TextAugment:
    """Token dropout.

    Attributes:
        drop: share of the tokens left out, in [0, 1); one always stays.
        unknown: share of the rest that becomes the token number :attr:`unknown_number`, in [0, 1].
        unknown_number: see ``unknown``.
    """

    drop: float = 0.0
    unknown: float = 0.0
    unknown_number: int = 1

    def __call__(self, tokens: Tensor, rng: np.random.Generator) -> Tensor:
        """``(tokens,)`` int64 to the same, or fewer."""
        if len(tokens) == 0:
            return tokens
        drawn = rng.random(len(tokens))
        kept = torch.from_numpy(drawn >= self.drop)
        kept[int(drawn.argmax())] = True
        tokens = tokens[kept]
        if self.unknown:
            forgotten = torch.from_numpy(rng.random(len(tokens)) < self.unknown)
            tokens = tokens.masked_fill(forgotten, self.unknown_number)
        return tokens
