"""Data in several modalities, any of which may be missing."""

from crossmodal.data.batch import Batch, pad
from crossmodal.data.digit_trio import MODALITIES, NUM_CLASSES, Difficulty, DigitTrio
from crossmodal.data.vocabulary import Vocabulary

__all__ = ["MODALITIES", "NUM_CLASSES", "Batch", "Difficulty", "DigitTrio", "Vocabulary", "pad"]
