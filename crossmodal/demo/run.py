"""The demo from end to end."""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch

from crossmodal._extras import require
from crossmodal.data.batch import Batch
from crossmodal.data.digit_trio import MODALITIES, DigitTrio
from crossmodal.data.spoken_digits import SAMPLE_RATE
from crossmodal.demo.attention_picture import choose_examples, draw_attention, explain_batch
from crossmodal.demo.config import DemoConfig
from crossmodal.demo.model import build_model, describe_model
from crossmodal.demo.result_pictures import draw_results, draw_training
from crossmodal.demo.scores import score, score_table
from crossmodal.demo.speed import FusionShape, Timing, compare_speed, speed_as_dict, speed_table
from crossmodal.models import FusionClassifier, modality_sets
from crossmodal.train.checkpoint import load_checkpoint
from crossmodal.train.fit import History, Schedule, fit

_EVALUATION_BATCH = 250
_OWN_FILES = ("metrics.json", "model.safetensors", "attention.png", "training.png", "results.png")


def run_demo(out: Path, config: DemoConfig, stream: TextIO | None = None) -> dict[str, Any]:
    """Synthesise the data, train four models, test them, draw what they did, time the operator.

    Args:
        out: folder for ``metrics.json``, ``model.safetensors`` (all modalities), ``single/*.safetensors`` (one
            modality each) and PNG pictures; an earlier run's files there are replaced.
        config: everything that the numbers depend on; the same config gives the same metrics, times excluded.
        stream: where to print; None is standard output.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        MissingExtraError: when a package of the extra ``demo`` is not installed; nothing has been done then.
        EspeakError: when the speech library does not work.
        KeyboardInterrupt: passed on; the best weights so far are in ``out``.
    """
    stream = stream or sys.stdout
    _require_everything()
    _prepare_folder(out)
    try:
        with _threads(config.threads):
            return _run(out, config, stream)
    except KeyboardInterrupt:
        print(f"\nInterrupted. {_what_is_left(out)}", file=stream, flush=True)
        raise


def _run(out: Path, config: DemoConfig, stream: TextIO) -> dict[str, Any]:
    start = time.perf_counter()
    print("Synthesising spoken digits ...", file=stream, flush=True)
    data = DigitTrio(
        config.seed,
        voices=config.voices,
        held_out_voices=config.held_out_voices,
        rates=config.rates,
        pitches=config.pitches,
    )
    print(_describe_data(data), file=stream)
    models, histories = _train_all(data, config, out, stream)

    test = list(data.batches("test", config.test_samples, batch_size=_EVALUATION_BATCH))
    scores = score(models["fused"], {name: models[name] for name in MODALITIES}, data, test)
    print(f"\n{score_table(scores, config.test_samples)}\n", file=stream, flush=True)

    timings = _time_operator(models["fused"], test[0], config)
    print(speed_table(timings), file=stream)

    validation = next(data.batches("validation", config.validation_samples, batch_size=_EVALUATION_BATCH))
    examples = explain_batch(models["fused"], validation, sample_rate=SAMPLE_RATE)
    draw_attention(choose_examples(examples, 3), out / "attention.png")
    draw_training(histories, out / "training.png")
    draw_results(scores, timings, out / "results.png")

    metrics = {
        **scores._asdict(),
        "speed": speed_as_dict(timings),
        "epochs": {name: history.as_dict() for name, history in histories.items()},
        "seed": config.seed,
        "config": asdict(config),
        "seconds": time.perf_counter() - start,
    }
    _write_whole(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    print(f"\n{metrics['seconds']:.0f} s in all. In {out}: {', '.join(_OWN_FILES)}", file=stream, flush=True)
    return metrics


def _train_all(
    data: DigitTrio, config: DemoConfig, out: Path, stream: TextIO
) -> tuple[dict[str, FusionClassifier], dict[str, History]]:
    """The fused model first, so that a run cut short leaves what matters."""
    validation = list(data.batches("validation", config.validation_samples, batch_size=_EVALUATION_BATCH))
    schedule = Schedule(config.epochs, config.steps, config.learning_rate)
    models: dict[str, FusionClassifier] = {}
    histories: dict[str, History] = {}
    for name in ("fused", *MODALITIES):
        modalities = MODALITIES if name == "fused" else (name,)
        checkpoint = out / "model.safetensors" if name == "fused" else out / "single" / f"{name}.safetensors"
        description = describe_model(config, modalities, data.vocabulary)
        model = build_model(description, seed=config.seed)
        weights = sum(parameter.numel() for parameter in model.parameters())
        print(f"\n{' + '.join(modalities)}: {weights:,} weights", file=stream)

        def train(epoch: int, modalities: Sequence[str] = modalities) -> Iterator[Batch]:
            return data.batches(
                "train",
                config.train_samples,
                batch_size=config.batch_size,
                epoch=epoch,
                modalities=modalities,
                # Noise in the only modality there is teaches nothing.
                spoiled=config.spoiled if len(modalities) > 1 else 0.0,
            )

        seen = [batch.only(*modalities) for batch in validation]
        histories[name] = fit(model, train, seen, schedule, checkpoint, description=description, stream=stream)
        models[name] = model
    return models, histories


def _what_is_left(out: Path) -> str:
    path = out / "model.safetensors"
    if not path.exists():
        return "Nothing had been trained yet."
    _, description = load_checkpoint(path)
    epoch = description["epoch"]
    return f"The best weights so far{f', of epoch {epoch}' if epoch else ''}, are in {path}"


def _describe_data(data: DigitTrio) -> str:
    lines = [f"{'':12}{'train':>12}{'validation':>12}{'test':>12}"]
    rows = {
        "images": [len(part.labels) for part in data.images.values()],
        "voices": [len(set(part.voices)) for part in data.speech.values()],
        "clips": [len(part.clips) for part in data.speech.values()],
    }
    lines += [f"{name:12}" + "".join(f"{count:>12,}" for count in counts) for name, counts in rows.items()]
    lines.append(f"{'sentences':12}{'made as needed, none in two splits':>36}")
    return "\n".join(lines)


def _time_operator(model: FusionClassifier, batch: Batch, config: DemoConfig) -> list[Timing]:
    """On the model's own shapes, and on a size that is usual with pretrained encoders."""
    tokens = tuple(
        model.encoders[name](batch.inputs[name], batch.lengths[name]).features.shape[1] for name in model.modalities
    )
    sets = len(modality_sets(len(tokens)))
    size, head_dim = (config.batch_size, config.num_heads), config.width // config.num_heads
    shapes = [
        FusionShape("demo, answering", *size, config.num_queries, tokens, head_dim),
        FusionShape("demo, learning", *size, sets * config.num_queries, tokens, head_dim, sets),
        FusionShape("77 over (197, 250, 77), D 64", 32, 8, 77, (197, 250, 77), 64),
    ]
    return compare_speed(shapes, seconds=config.timing_seconds, fewest_rounds=config.timing_rounds, seed=config.seed)


def _require_everything() -> None:
    """Tell what is missing before the first second is spent."""
    for module, distribution in (
        ("sklearn.datasets", "scikit-learn"),
        ("espeakng_loader", "espeakng-loader"),
        ("safetensors.torch", "safetensors"),
        ("matplotlib", "matplotlib"),
    ):
        require(module, distribution=distribution, extra="demo")


def _prepare_folder(out: Path) -> None:
    """Make it, and remove an earlier run's results: they would pass for those of a run that was cut short."""
    out.mkdir(parents=True, exist_ok=True)
    for name in (*_OWN_FILES, *(f"single/{modality}.safetensors" for modality in MODALITIES)):
        (out / name).unlink(missing_ok=True)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
