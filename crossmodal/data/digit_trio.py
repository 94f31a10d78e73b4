"""One digit in three modalities: a handwritten image, a sentence, a spoken word, each of them damaged.

The three parts of a sample are drawn independently given the digit, so that no part can be guessed from
another and every modality adds evidence. Splits share no image, no voice and no sentence.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossmodal.data.batch import Batch, pad
from crossmodal.data.digit_images import DigitImages, load_digit_images, split_digit_images
from crossmodal.data.noise import damage_images, play_at_speed, random_normal, speech_in_noise
from crossmodal.data.sentences import Split, compose_sentence_of, damage_sentence
from crossmodal.data.spoken_digits import (
    PITCHES,
    RATES,
    SAMPLE_RATE,
    VOICES,
    SpokenDigits,
    split_voices,
    synthesize_spoken_digits,
)
from crossmodal.data.vocabulary import Vocabulary, number_sentence_vocabulary

MODALITIES = ("image", "text", "audio")
NUM_CLASSES = 10
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Difficulty:
    """How badly the digits are damaged.

    Attributes:
        image_sigma: white noise on the image, where ink is 1.
        image_hidden: edge of the hidden square, in pixels of 8.
        word_drop: share of words lost.
        word_typo: share of words misspelt.
        audio_snr_db: the spoken digit over noise and babble, in dB.
        audio_babble: amplitude of the babble as a share of the white noise's.
        audio_talkers: how many other voices talk.
        audio_margin: silence around the word, in seconds, of which a random part comes first.
    """

    image_sigma: float = 0.3
    image_hidden: int = 4
    word_drop: float = 0.12
    word_typo: float = 0.08
    audio_snr_db: float = -2.0
    audio_babble: float = 0.3
    audio_talkers: int = 3
    audio_margin: float = 0.15


class DigitTrio:
    """Draws damaged samples of one digit in three modalities.

    Everything is a function of ``seed`` and of the arguments of a call: no global random state is read or
    changed, and a batch has the same content whichever modalities are asked for.

    Args:
        seed: of the splits and of every sample.
        difficulty: how badly samples are damaged.
        images: how many images go to train and to validation; the rest is for test.
        voices: names by kind of voice; of each kind ``held_out_voices`` go to validation and to test.
        held_out_voices: see ``voices``.
        rates: words per minute of the spoken digits.
        pitches: of the spoken digits, 0 to 99.
        new_voices: training clips are played faster or slower by up to this share, to make many voices of a
            few; validation and test clips never are.

    Raises:
        MissingExtraError: when scikit-learn or espeakng-loader is not installed.
        EspeakError: when the speech library does not work.
    """

    def __init__(
        self,
        seed: int = 0,
        difficulty: Difficulty | None = None,
        *,
        images: tuple[int, int] = (1000, 300),
        voices: Mapping[str, Sequence[str]] = VOICES,
        held_out_voices: int = 2,
        rates: Sequence[int] = RATES,
        pitches: Sequence[int] = PITCHES,
        new_voices: float = 0.15,
    ) -> None:
        self.seed = seed
        self.new_voices = new_voices
        self.difficulty = difficulty or Difficulty()
        self.vocabulary: Vocabulary = number_sentence_vocabulary()
        parts = split_digit_images(load_digit_images(), images, seed)
        names = [name for kind in voices.values() for name in kind]
        speech = synthesize_spoken_digits(names, rates=rates, pitches=pitches)
        voice_parts = split_voices(voices, held_out_voices, seed)
        self.images: dict[Split, DigitImages] = dict(zip(SPLITS, parts, strict=True))
        self.speech: dict[Split, SpokenDigits] = {
            split: speech.spoken_by(part) for split, part in zip(SPLITS, voice_parts, strict=True)
        }
        self._tapes = {split: torch.cat(part.clips) for split, part in self.speech.items()}
        self._image_rows = {split: _rows_by_digit(part.labels) for split, part in self.images.items()}
        self._clip_rows = {split: _rows_by_digit(part.labels) for split, part in self.speech.items()}

    def batches(
        self,
        split: Split,
        count: int,
        *,
        batch_size: int = 64,
        epoch: int = 0,
        modalities: Sequence[str] = MODALITIES,
        spoiled: float = 0.0,
    ) -> Iterator[Batch]:
        """``count`` samples in batches; the last one may be smaller.

        Args:
            split: where images, voices and sentences come from.
            count: number of samples.
            batch_size: samples per batch.
            epoch: another number gives other samples.
            modalities: which inputs to make; those left out cost nothing.
            spoiled: share of the samples of each modality that is nothing but noise, in [0, 1].
        """
        for index, start in enumerate(range(0, count, batch_size)):
            key = (epoch, index)
            batch = self.batch(split, min(batch_size, count - start), key, modalities)
            for modality in modalities if spoiled else ():
                rng = self._rng(split, key, f"spoiled {modality}")
                batch = self._spoil(batch, modality, rng, share=spoiled)
            yield batch

    def batch(self, split: Split, size: int, key: tuple[int, int], modalities: Sequence[str] = MODALITIES) -> Batch:
        """One batch; ``key`` (epoch, index) names it."""
        labels = self._rng(split, key, "labels").integers(NUM_CLASSES, size=size)
        batch = Batch({}, {}, torch.from_numpy(labels))
        if "image" in modalities:
            batch.inputs["image"] = self._draw_images(split, labels, self._rng(split, key, "image"))
            batch.lengths["image"] = torch.ones(size, dtype=torch.int64)
        if "text" in modalities:
            texts = self._draw_texts(split, labels, self._rng(split, key, "text"))
            encoded = [self.vocabulary.encode(words) for words in texts]
            batch.inputs["text"], batch.lengths["text"] = pad(encoded)
            batch = batch._replace(texts=texts)
        if "audio" in modalities:
            clips = self._draw_audio(split, labels, self._rng(split, key, "audio"))
            batch.inputs["audio"], batch.lengths["audio"] = pad(clips)
        return batch

    def turned_to_noise(self, batch: Batch, modality: str) -> Batch:
        """The same samples, one modality replaced by noise of the same length and loudness.

        Unlike a missing modality nothing says so: the model has to find out.

        Raises:
            KeyError: for a modality that the batch does not have.
        """
        rng = np.random.default_rng([self.seed, len(batch.labels)])
        return self._spoil(batch, modality, rng, share=1.0)

    def _spoil(self, batch: Batch, modality: str, rng: np.random.Generator, share: float) -> Batch:
        inputs = batch.inputs[modality].clone()
        rows = torch.from_numpy(np.flatnonzero(rng.random(len(inputs)) < share))
        shape = (len(rows), *inputs.shape[1:])
        if modality == "text":
            words = rng.integers(Vocabulary.unknown + 1, len(self.vocabulary), shape)
            inputs[rows] = torch.from_numpy(words)
        else:
            inputs[rows] = inputs.mean() + inputs.std() * random_normal(shape, rng)
        return batch._replace(inputs={**batch.inputs, modality: inputs})

    def _rng(self, split: Split, key: tuple[int, int], stream: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(split), *key, zlib.crc32(stream.encode())])

    def _draw_images(self, split: Split, labels: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        rows = self._image_rows[split]
        chosen = torch.tensor([int(rng.choice(rows[digit])) for digit in labels])
        clean = self.images[split].pixels[chosen]
        level = self.difficulty
        return damage_images(clean, rng, sigma=level.image_sigma, hidden=level.image_hidden)

    def _draw_texts(self, split: Split, labels: NDArray[np.int64], rng: np.random.Generator) -> list[list[str]]:
        level = self.difficulty
        return [
            damage_sentence(
                compose_sentence_of(split, int(digit), rng),
                rng,
                drop=level.word_drop,
                typo=level.word_typo,
            )
            for digit in labels
        ]

    def _draw_audio(self, split: Split, labels: NDArray[np.int64], rng: np.random.Generator) -> list[Tensor]:
        level, clips, rows = self.difficulty, self.speech[split].clips, self._clip_rows[split]
        waveforms = []
        for digit in labels:
            clip = clips[int(rng.choice(rows[digit]))]
            if split == "train":
                clip = play_at_speed(clip, float(rng.uniform(1 - self.new_voices, 1 + self.new_voices)))
            waveforms.append(
                speech_in_noise(
                    clip,
                    self._tapes[split],
                    rng,
                    snr_db=level.audio_snr_db,
                    talkers=level.audio_talkers,
                    babble=level.audio_babble,
                    margin=round(level.audio_margin * SAMPLE_RATE),
                )
            )
        return waveforms


def _rows_by_digit(labels: Tensor) -> list[NDArray[np.int64]]:
    return [np.flatnonzero(labels.numpy() == digit) for digit in range(NUM_CLASSES)]
