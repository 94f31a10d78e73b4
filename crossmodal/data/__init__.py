"""Data in several modalities, any of which may be missing."""

from crossmodal.data.batch import Batch, pad
from crossmodal.data.digit_trio import MODALITIES, NUM_CLASSES, Difficulty, DigitTrio
from crossmodal.data.manifest import ManifestOptions, manifest_splits, read_manifest, training_rows
from crossmodal.data.open import open_data
from crossmodal.data.sample import Dataset, Modality, Sample, Splits
from crossmodal.data.shards import Shards, write_shards
from crossmodal.data.tokenizer import Tokenizer, train_tokenizer
from crossmodal.data.vocabulary import Vocabulary

__all__ = [
    "MODALITIES",
    "NUM_CLASSES",
    "Batch",
    "Dataset",
    "Difficulty",
    "DigitTrio",
    "ManifestOptions",
    "Modality",
    "Sample",
    "Shards",
    "Splits",
    "Tokenizer",
    "Vocabulary",
    "manifest_splits",
    "open_data",
    "pad",
    "read_manifest",
    "train_tokenizer",
    "training_rows",
    "write_shards",
]
