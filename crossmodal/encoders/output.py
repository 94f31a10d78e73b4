"""What every encoder returns."""

from typing import NamedTuple

from torch import Tensor


class EncoderOutput(NamedTuple):
    """Features of one modality, ready to be projected into the common space.

    Attributes:
        features: ``(B, L, C)``; tokens at or beyond a sample's length are padding of no meaning.
        lengths: ``(B,)`` int64 in [0, L], the number of real tokens; 0 says that the modality is missing.
    """

    features: Tensor
    lengths: Tensor
