"""The settings of a demo run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from crossmodal.data.spoken_digits import PITCHES, RATES, VOICES


@dataclass(frozen=True)
class DemoConfig:
    """Everything that the numbers of a run depend on.

    Attributes:
        seed: of the splits, the samples and the weights.
        epochs: of each model.
        train_samples: per epoch, damaged afresh in every epoch.
        validation_samples: for choosing the best epoch; the same in all epochs.
        test_samples: for the final table; drawn when all training is over.
        batch_size: samples per training step.
        width: of the common space and of the encoders.
        num_heads: attention heads.
        num_queries: learned queries.
        learning_rate: peak of the one-cycle schedule.
        spoiled: share of each modality's training inputs replaced by noise when all modalities are there.
        threads: of torch. One is nearly as fast as two for a model this small, and much faster beside
            other work, where OpenMP's threads wait for each other.
        voices: names by kind of voice, of which ``held_out_voices`` per kind go to validation and to test.
        held_out_voices: see ``voices``.
        rates: words per minute.
        pitches: 0 to 99.
        timing_seconds: how long each comparison of speed may take, in seconds.
        timing_rounds: of calls that it makes in any case.
    """

    seed: int = 0
    epochs: int = 8
    train_samples: int = 4000
    validation_samples: int = 1000
    test_samples: int = 2000
    batch_size: int = 128
    width: int = 48
    num_heads: int = 4
    num_queries: int = 4
    learning_rate: float = 8e-3
    spoiled: float = 0.1
    threads: int = 1
    voices: Mapping[str, Sequence[str]] = field(default_factory=lambda: VOICES)
    held_out_voices: int = 2
    rates: Sequence[int] = RATES
    pitches: Sequence[int] = PITCHES
    timing_seconds: float = 1.0
    timing_rounds: int = 5

    @property
    def steps(self) -> int:
        """Training batches per epoch."""
        return -(-self.train_samples // self.batch_size)


def quick_config(seed: int = 0, epochs: int = 2, threads: int = 1) -> DemoConfig:
    """A run of some seconds that shows that everything works and learns next to nothing."""
    return DemoConfig(
        seed=seed,
        epochs=epochs,
        train_samples=320,
        validation_samples=128,
        test_samples=128,
        threads=threads,
        voices={kind: names[:4] for kind, names in VOICES.items()},
        held_out_voices=1,
        rates=RATES[:1],
        pitches=PITCHES[:1],
        timing_seconds=0.1,
        timing_rounds=1,
    )
