"""A training run from end to end, and again from where it was killed."""

import csv
import io
import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any, TextIO

import torch

from crossmodal._extras import require
from crossmodal.data.collate import Collate
from crossmodal.data.open import open_data
from crossmodal.data.sample import Splits
from crossmodal.train.checkpoint import load_checkpoint
from crossmodal.train.config import TrainConfig, make_config, read_config
from crossmodal.train.examine import examine, summary
from crossmodal.train.learners import make_learner
from crossmodal.train.loop import Progress, Trainer, averages_of
from crossmodal.train.model import begin_with, build_model, describe_model, load_model, modalities_of
from crossmodal.train.processes import Processes, load_whole_state, whole_state, whole_tensor
from crossmodal.train.progress import EpochLine
from crossmodal.train.reading import difference, reading_of
from crossmodal.train.state import flatten, shapes_of, unflatten, write_tensors, write_text

CONFIG, MODEL, STATE = "config.yaml", "model.safetensors", "state.safetensors"
METRICS, LOG = "metrics.json", "log.csv"
EVALUATION, CONFUSION, ATTENTION = "eval.json", "confusion.png", "attention.png"
_BOARD = "tensorboard"
# Models that FSDP does not train, and why.
_NOT_SHARDED = {
    "captioner": "a captioner: it is asked symbol by symbol, past FSDP's hooks",
    "two_tower": "two towers: FSDP has no way to share a single number, such as their scale",
}


class RunError(RuntimeError):
    """A run cannot begin or go on; the message is one line that says why."""


def start_run(
    config: TrainConfig, out: Path, stream: TextIO | None = None, *, splits: Splits | None = None
) -> dict[str, Any]:
    """Train, select on validation data, test; see :func:`resume_run` for what comes after an interruption.

    Args:
        config: everything that the result depends on.
        out: folder for ``config.yaml``, ``model.safetensors`` (the epoch with the lowest validation loss),
            ``state.safetensors`` (to go on from), ``log.csv``, TensorBoard's files and ``metrics.json``; what an
            earlier run left there is removed, once this one has its data and its model.
        stream: where to print; None is standard output.
        splits: the data of ``config``, where they are open already.

    Returns:
        What ``metrics.json`` holds; of several processes the first one alone tests, and the others get nothing.

    Raises:
        MissingExtraError: when a package of the extra ``train`` is not installed; nothing has been done then.
        ValueError, FileNotFoundError: for settings and data that do not fit; what was in ``out`` is whole.
        OSError: when ``out`` cannot be written; what was there before is whole.
    """
    processes = Processes(config)
    if processes.is_first:
        out.mkdir(parents=True, exist_ok=True)
        print(config.as_yaml(), file=stream or sys.stdout, flush=True)
    run = _Run(config, out, processes, stream, splits, fresh=True)
    if processes.is_first:
        for name in (MODEL, STATE, METRICS, LOG, EVALUATION, CONFUSION, ATTENTION):
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / _BOARD, ignore_errors=True)
        write_text(out / CONFIG, config.as_yaml())
    processes.wait()
    return run.go()


def resume_run(out: Path, stream: TextIO | None = None, *, splits: Splits | None = None) -> dict[str, Any]:
    """Go on with a run that was ended by anything, at any moment: the result is that of a run that never was.

    Raises:
        RunError: when ``out`` holds no run, or the state of another model than its settings describe, or of one that
            read its inputs otherwise, such as texts with other words.
        OSError: when ``out`` cannot be written.
    """
    if not (out / CONFIG).exists():
        raise RunError(f"{out} holds no run: there is no {CONFIG}")
    config = make_config(read_config(out / CONFIG))
    processes = Processes(config)
    if (out / METRICS).exists() and not (out / STATE).exists():
        raise RunError(f"{out} holds no state to go on from")
    return _Run(config, out, processes, stream, splits, fresh=not (out / STATE).exists()).go()


def _of_others(error: RuntimeError) -> str:
    """What happened, where it was another process that failed: torch says so in words alone."""
    text = str(error)
    if "DataLoader worker" in text:
        return "a process that makes batches died"
    signs = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    if isinstance(error, torch.distributed.DistError) or any(sign in text for sign in signs):
        return "another process of the run died or cannot be reached"
    return ""


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class _Run:
    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        processes: Processes,
        stream: TextIO | None,
        splits: Splits | None,
        *,
        fresh: bool,
    ) -> None:
        torch.set_num_threads(config.threads)
        self.config, self.out, self.processes = config, out, processes
        self.stream = (stream or sys.stdout) if processes.is_first else io.StringIO()
        self.splits = splits or open_data(
            config.data,
            None if config.root is None else Path(config.root),
            seed=config.seed,
            strict=config.strict,
            options=config.options,
            only=config.modalities,
        )
        self.description = describe_model(config, self.splits)
        # As JSON gives it back, to be compared with what a state was saved from.
        self._model = json.loads(json.dumps({k: v for k, v in self.description.items() if k != "data"}))
        self._reading = {name: reading_of(self.description, name) for name in self.description["modalities"]}
        if config.parallel == "fsdp" and processes.count > 1 and self.description["kind"] in _NOT_SHARDED:
            raise ValueError(f"parallel must be ddp for {_NOT_SHARDED[self.description['kind']]}")
        model = build_model(self.description, seed=config.seed)
        self._shapes = shapes_of(model.state_dict())
        if fresh:
            starts = {name: Path(run) / MODEL for name, run in config.start.items()}
            for begun in begin_with(model, self.description, starts):
                print(f"begins with {begun}", file=self.stream)
        for name in config.start if config.frozen else ():
            model.encoders[name].requires_grad_(False)
        self.trainer = Trainer(
            model,
            make_learner(self.description, config),
            self.splits,
            config,
            processes,
            Collate(modalities_of(self.description)),
        )
        weights = sum(parameter.numel() for parameter in model.parameters())
        print(f"{self.description['kind']}, {weights:,} weights", file=self.stream)
        if processes.remark:
            print(f"precision: {processes.remark}", file=self.stream)
        for problem in self.splits.description.get("skipped", []):
            print(f"skipped: {problem}", file=self.stream)
        self._line: EpochLine | None = None

    def go(self) -> dict[str, Any]:
        self._load_state()
        try:
            self.trainer.run(after_step=self._after_step, keep=self._keep, after_epoch=self._after_epoch)
            # The first one tests alone, for as long as it takes: others that waited would give it up as dead.
            self.processes.wait()
            self.processes.close()
            return self._test() if self.processes.is_first else {}
        except RuntimeError as error:
            reason = _of_others(error)
            if not reason:
                raise
            raise RunError(f"{reason}; go on with --resume {self.out} ({_first_line(error)})") from error

    def _after_step(self) -> None:
        progress = self.trainer.progress
        if self._line is None:
            self._begin_line()
        assert self._line is not None
        self._line.update(progress.step, **{k: v / max(1, progress.samples) for k, v in progress.sums.items()})
        inside = progress.step < self.trainer.steps_per_epoch
        if inside and progress.step % self.config.checkpoint_every == 0:
            self._save_state()

    def _keep(self) -> None:
        weights, _ = whole_state(self.trainer.model, self.trainer.optimizer)
        if self.processes.is_first:
            write_tensors(self.out / MODEL, weights, {**self.description, "epoch": self.trainer.progress.epoch})
        self.processes.wait()

    def _after_epoch(self) -> None:
        history = self.trainer.progress.history
        if self._line is None:  # went on where nothing but the validation was left to do
            self._begin_line(len(history))
        assert self._line is not None
        self._line.finish(**{k: v for k, v in history[-1].items() if k not in ("epoch", "seconds", "data_share")})
        self._line = None
        # Before the state: a run that is killed between the two goes on before this epoch's end, and logs it again.
        if self.processes.is_first:
            self._log(history)
        self._save_state()

    def _begin_line(self, epoch: int | None = None) -> None:
        number = epoch or self.trainer.progress.epoch + 1
        print(f"Epoch {number}/{self.config.epochs}", file=self.stream, flush=True)
        self._line = EpochLine(self.trainer.steps_per_epoch, self.stream)

    def _save_state(self) -> None:
        trainer = self.trainer
        weights, moments = whole_state(trainer.model, trainer.optimizer)
        average = {name: whole_tensor(value) for name, value in averages_of(trainer.average).items()}
        if self.processes.is_first:
            progress = trainer.progress
            tensors = {
                **flatten({"model": weights, "average": average}, "weights"),
                **flatten(moments["state"], "moments"),
                **flatten(trainer.learner.state(), "learner"),
            }
            scaler = trainer.scaler_state()
            rest = {"groups": moments["param_groups"], "scaler": scaler, "model": self._model, "reading": self._reading}
            write_tensors(
                self.out / STATE, tensors, {**vars(progress), **rest, "samples_per_step": trainer.samples_per_step}
            )
        self.processes.wait()

    def _load_state(self) -> None:
        path = self.out / STATE
        if not path.exists():
            return
        tensors, description = load_checkpoint(path)
        groups, scaler, saved = description.pop("groups"), description.pop("scaler"), description.pop("model", None)
        reading = description.pop("reading", {})  # what is from before it was kept says nothing
        trainer = self.trainer
        samples_per_step = description.pop("samples_per_step", trainer.samples_per_step)
        weights = unflatten(tensors, "weights")
        same = saved == self._model and shapes_of(weights["model"]) == self._shapes
        if not same or bool(trainer.average) != ("average" in weights):
            raise RunError(
                f"{path} holds another model than {CONFIG} describes, such as one of another version, or of settings "
                f"or a pretrained model's files that were changed since; begin again without --resume"
            )
        for name, theirs in reading.items():
            if said := difference(theirs, self._reading[name]):
                raise RunError(
                    f"{path} has learnt from other data than {self.config.data} holds now, whose {name} was read with "
                    f"{said}; begin again without --resume"
                )
        load_whole_state(
            trainer.model,
            trainer.optimizer,
            weights["model"],
            {"state": unflatten(tensors, "moments"), "param_groups": groups},
        )
        if trainer.average:
            trainer.average.load(weights["average"])
        trainer.load_scaler(scaler)
        trainer.learner.load_state(unflatten(tensors, "learner"))
        trainer.progress = Progress(**description)
        # Of another number of processes: what does not fill a step of these is learnt from once more.
        trainer.progress.step = trainer.progress.step * samples_per_step // trainer.samples_per_step
        print(
            f"Going on from epoch {trainer.progress.epoch + 1}, step {trainer.progress.step + 1}",
            file=self.stream,
            flush=True,
        )

    def _log(self, history: list[dict[str, Any]]) -> None:
        """All of it, every time: a killed run leaves no half row and no row twice."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(itertools.chain(*history))))
        writer.writeheader()
        writer.writerows(history)
        write_text(self.out / LOG, text.getvalue())
        tensorboard = require("torch.utils.tensorboard", distribution="tensorboard", extra="train")
        with tensorboard.SummaryWriter(self.out / _BOARD, purge_step=len(history)) as board:
            for name, value in history[-1].items():
                if name != "epoch":
                    board.add_scalar(name, value, len(history))

    def _test(self) -> dict[str, Any]:
        progress = self.trainer.progress
        assert progress.best is not None
        model, description = load_model(self.out / MODEL)
        test = examine(model, description, self.splits.test, self.config)
        metrics = {
            "val": progress.best,
            "test": test,
            "history": progress.history,
            "skipped": len(self.splits.description.get("skipped", [])),
            "config": self.config.as_dict(),
        }
        write_text(self.out / METRICS, json.dumps(metrics, indent=2) + "\n")
        print(summary(test), file=self.stream, flush=True)
        return metrics
