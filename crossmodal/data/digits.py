"""The embedded digits as data sets of numbered samples."""

from collections.abc import Mapping
from types import MappingProxyType

from crossmodal.data.digit_trio import NUM_CLASSES, DigitTrio
from crossmodal.data.reader import describe_reader
from crossmodal.data.sample import Modality, Question, Sample, Splits, Task
from crossmodal.data.sentences import Split
from crossmodal.data.spoken_digits import SAMPLE_RATE

_SIZES: dict[Split, int] = {"train": 4000, "validation": 1000, "test": 2000}


class Digits:
    """One split of :class:`DigitTrio`; see :class:`crossmodal.data.sample.Dataset`."""

    task: Task = "classification"
    classes = tuple(str(digit) for digit in range(NUM_CLASSES))
    questions: Mapping[str, Question] = MappingProxyType({})

    def __init__(self, trio: DigitTrio, split: Split) -> None:
        self.modalities = {
            "image": Modality("image", size=(1, 8, 8)),
            "text": Modality("text", vocabulary=len(trio.vocabulary)),
            "audio": Modality("audio", sample_rate=SAMPLE_RATE),
        }
        self._trio, self._split, self._epoch = trio, split, 0

    def __len__(self) -> int:
        return _SIZES[self._split]

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch if self._split == "train" else 0

    def __getitem__(self, index: int) -> Sample:
        batch = self._trio.batch(self._split, 1, (self._epoch, index))
        words = " ".join((batch.texts or [[]])[0])
        return Sample({name: values[0] for name, values in batch.inputs.items()}, batch.labels[0], words)


def digits(seed: int = 0) -> Splits:
    """The three splits; the data are a function of ``seed``.

    Raises:
        MissingExtraError: when scikit-learn or espeakng-loader is not installed.
        EspeakError: when the speech library does not work.
    """
    trio = DigitTrio(seed)
    train, validation, test = (Digits(trio, split) for split in _SIZES)
    reader = describe_reader(train.modalities, {"words": trio.vocabulary.words})
    return Splits(train, validation, test, {"reader": reader})
