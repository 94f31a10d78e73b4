"""The training loop: steps, epochs, and a state that a killed run goes on from without a bit's difference."""

import hashlib
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crossmodal.data.batch import Batch
from crossmodal.data.collate import Collate
from crossmodal.data.loader import StepSampler, train_loader
from crossmodal.data.sample import Dataset, Splits
from crossmodal.data.shards import Shards
from crossmodal.train.answers import answers_of
from crossmodal.train.average import MovingAverage
from crossmodal.train.config import TrainConfig
from crossmodal.train.learner import Answers, Learner
from crossmodal.train.processes import Processes
from crossmodal.train.schedule import cosine_with_warm_up

_SMALLEST_SCALE = 2.0**-10  # of float16's gradients; it begins at 2^16, and halves with each that is not finite


@dataclass
class Progress:
    """Where a run is; everything in it is JSON.

    Attributes:
        epoch, step: the next step to take.
        sums, samples: of the epoch so far.
        history: one row per epoch that is over.
        best: the lowest validation loss so far, and its epoch.
        seconds: by what they were spent on, in the epoch so far.
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, float] | None = None
    seconds: dict[str, float] = field(default_factory=dict)


class Trainer:
    """Trains a model, step by step.

    Args:
        model: on its device.
        learner: what it is trained for.
        splits: the data.
        config: the settings.
        processes: this process among those that train together.
        collate: makes batches of samples.

    Raises:
        ValueError: when an epoch has not a single step.
    """

    def __init__(
        self,
        model: nn.Module,
        learner: Learner,
        splits: Splits,
        config: TrainConfig,
        processes: Processes,
        collate: Collate,
    ) -> None:
        self.learner, self.splits, self.config, self.processes = learner, splits, config, processes
        self.collate = collate
        if not self.steps_per_epoch:
            raise ValueError(
                f"an epoch needs at least one step of {self.samples_per_step} samples, got {self._epoch_size()} "
                f"samples; a smaller batch_size makes one"
            )
        learner.prepare(model.to(processes.device))
        self.model = processes.prepare(model)
        self.optimizer = torch.optim.AdamW(
            _groups(self.model, config.weight_decay), lr=config.learning_rate, fused=True
        )
        self.average = MovingAverage(self.model, config.ema, forget=config.forget) if config.ema else None
        self.progress = Progress()
        self._scaler = torch.amp.GradScaler(processes.device.type, enabled=config.precision == "fp16")

    @property
    def steps_per_epoch(self) -> int:
        """Steps, each of ``accumulate`` batches of every process."""
        return self._epoch_size() // self.samples_per_step

    @property
    def samples_per_step(self) -> int:
        """Of all processes."""
        return self.config.batch_size * self.config.accumulate * self.processes.count

    def run(self, *, after_step: Callable[[], None], keep: Callable[[], None], after_epoch: Callable[[], None]) -> None:
        """Train to the end, from wherever ``progress`` is.

        Args:
            after_step: called when a step is over.
            keep: called when an epoch is over that is the best so far; the averaged weights are in place.
            after_epoch: called when an epoch is over.

        Raises:
            FloatingPointError: when a loss or a gradient is not finite.
        """
        while self.progress.epoch < self.config.epochs and not self._stops_early():
            self._epoch(after_step)
            with self.averaged():
                if self._finish_epoch():
                    keep()
            after_epoch()

    def averaged(self) -> AbstractContextManager[None]:
        """The averaged weights in place of those of the last step, where there is an average."""
        return _exchanged(self.average, self.model) if self.average else nullcontext()

    def answers(self, dataset: Dataset) -> Answers:
        """What the model says to a data set; every process works through all of it."""
        return answers_of(
            self.model,
            self.learner,
            dataset,
            self.collate,
            batch_size=2 * self.config.batch_size,
            workers=self.config.workers,
            device=self.processes.device,
            autocast=self.processes.autocast,
        )

    def scaler_state(self) -> dict[str, Any]:
        """Of the scaler of float16's gradients; empty for other precisions."""
        state: dict[str, Any] = self._scaler.state_dict()
        return state

    def load_scaler(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`scaler_state`."""
        if state:
            self._scaler.load_state_dict(state)

    def _epoch(self, after_step: Callable[[], None]) -> None:
        progress, dataset = self.progress, self.splits.train
        dataset.set_epoch(progress.epoch)
        batches = self._batches(dataset)
        self.model.train()
        for step in range(progress.step, self.steps_per_epoch):
            self._step(batches, step)
            progress.step = step + 1
            after_step()

    def _batches(self, dataset: Dataset) -> Iterator[Batch]:
        config, processes = self.config, self.processes
        first = self.progress.step * config.accumulate
        if isinstance(dataset, Shards):
            return dataset.batches(
                self.collate,
                config.batch_size,
                steps=self.steps_per_epoch * config.accumulate,
                first_step=first,
                rank=processes.rank,
                world_size=processes.count,
                workers=config.workers,
            )
        sampler = StepSampler(
            len(dataset),
            config.batch_size,
            seed=config.seed,
            epoch=self.progress.epoch,
            first_step=first,
            rank=processes.rank,
            world_size=processes.count,
            size_limit=self._epoch_size(),
        )
        return iter(train_loader(dataset, self.collate, sampler, workers=config.workers, device=processes.device))

    def _step(self, batches: Iterator[Batch], step: int) -> None:
        config, progress = self.config, self.progress
        run_step = progress.epoch * self.steps_per_epoch + step
        rate = config.learning_rate * cosine_with_warm_up(
            run_step, config.epochs * self.steps_per_epoch, config.warm_up
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        for part in range(config.accumulate):
            start = time.perf_counter()
            batch = next(batches).to(self.processes.device)
            self._spend("data", start)
            start = time.perf_counter()
            # A function of where the run is, so that no generator's state has to be kept.
            _seed(_seed_of(config.seed, run_step, part, self.processes.rank))
            last = part == config.accumulate - 1
            with self.processes.without_synchronising(self.model, not last):
                with self.processes.autocast():
                    result = self.learner.step(self.model, batch)
                self._scaler.scale(result.loss / config.accumulate).backward()
            sums = self.processes.summed({**{k: v.item() for k, v in result.shown.items()}, "": result.samples})
            if not all(map(math.isfinite, sums.values())):
                raise self._not_finite("loss", step)
            progress.samples += int(sums.pop(""))
            for name, value in sums.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
            self._spend("learning", start)
        start = time.perf_counter()
        self._scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.max_gradient)
        # What float16 cannot hold is skipped, and scaled by less from then on: less does not help for ever.
        if not torch.isfinite(norm) and (not self._scaler.is_enabled() or self._scaler.get_scale() < _SMALLEST_SCALE):
            raise self._not_finite("gradient", step)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if self.average:
            self.average.update(self.model, run_step)
        self._spend("learning", start)

    def _not_finite(self, what: str, step: int) -> FloatingPointError:
        return FloatingPointError(f"the {what} is not finite in epoch {self.progress.epoch + 1}, step {step + 1}")

    def _finish_epoch(self) -> bool:
        """Validate; True where no epoch before was better."""
        progress = self.progress
        measured = self.learner.measure(self.answers(self.splits.validation))
        row: dict[str, Any] = {"epoch": progress.epoch + 1}
        row.update({name: value / max(1, progress.samples) for name, value in progress.sums.items()})
        row.update({f"val_{name}": value for name, value in measured.items()})
        spent = sum(progress.seconds.values())
        row["seconds"] = spent
        row["data_share"] = progress.seconds.get("data", 0.0) / max(spent, 1e-9)
        best = math.nan if progress.best is None else progress.best["loss"]
        better = math.isnan(best) or measured["loss"] < best
        if better:
            progress.best = {"epoch": progress.epoch + 1, **measured}
        progress.history.append(row)
        progress.epoch, progress.step, progress.sums, progress.samples = progress.epoch + 1, 0, {}, 0
        progress.seconds = {}
        return better

    def _stops_early(self) -> bool:
        patience, progress = self.config.patience, self.progress
        return bool(patience and progress.best and progress.epoch - progress.best["epoch"] >= patience)

    def _epoch_size(self) -> int:
        return min(len(self.splits.train), self.config.samples or len(self.splits.train))

    def _spend(self, what: str, start: float) -> None:
        self.progress.seconds[what] = self.progress.seconds.get(what, 0.0) + time.perf_counter() - start


class _exchanged(AbstractContextManager[None]):  # noqa: N801  a context manager reads as a function
    def __init__(self, average: MovingAverage, model: nn.Module) -> None:
        self.average, self.model = average, model

    def __enter__(self) -> None:
        self.average.exchange(self.model)

    def __exit__(self, *_: object) -> None:
        self.average.exchange(self.model)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights of layers decay; biases, norms, embeddings and learned tokens do not: nothing pulls them to zero."""
    decayed = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)}
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) not in decayed], "weight_decay": 0.0},
    ]


def _seed(seed: int) -> None:
    """All global generators: encoders of other libraries draw their masks from numpy's or Python's."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # it takes no more
    random.seed(seed)


def _seed_of(*numbers: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=7).digest(), "big")


def averages_of(average: MovingAverage | None) -> dict[str, Tensor]:
    """The average's weights, by name; empty without one."""
    return {} if average is None else dict(average.weights)
