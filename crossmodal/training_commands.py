"""The commands train, eval, predict, search and results of `crossmodal`.

What a command needs is imported when it runs, so that `--help` and mistakes in typing answer at once.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crossmodal.arguments import natural, positive

_SETTINGS = (
    ("--epochs", int, "passes over the training samples"),
    ("--seed", int, "of the weights and of what is random in the data (default: 0)"),
    ("--samples", int, "training samples per epoch (default: all)"),
    ("--batch-size", int, "samples per process and backward pass (default: 128)"),
    ("--accumulate", int, "backward passes per step (default: 1)"),
    ("--learning-rate", float, "the peak of the cosine schedule"),
    ("--ema", float, "decay of a moving average of the weights; 0 for none"),
    ("--patience", int, "epochs without improvement before stopping early (default: never)"),
    ("--workers", int, "processes that make batches (default: 0, where they are used)"),
    ("--threads", int, "of torch, on CPU (default: 1)"),
)


def add_training_commands(commands: Any) -> None:
    """Add the five to the sub-parsers of ``crossmodal``."""
    _add_train(commands)
    _add_eval(commands)
    _add_predict(commands)
    _add_search(commands)
    _add_results(commands)


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train a model on images, sound and text",
        description="Train, select the epoch by validation loss, test with every modality missing in turn. Settings "
        "come from what is usual for the data set, then from --config, then from flags; the result is printed and kept "
        "in RUN. A --config that names every setting, such as RUN/config.yaml, stands alone.",
        epilog="Writes RUN/metrics.json, model.safetensors, state.safetensors, log.csv, config.yaml and TensorBoard's "
        "files. A run that was killed at any moment goes on with --resume RUN, and ends as if it had not been. Several "
        "processes: torchrun --nproc-per-node N -m crossmodal.cli train ...",
    )
    train.add_argument(
        "--data",
        metavar="NAME",
        help="digits, avmnist, avmnist-speaker, avmnist-hard, avfind, avfind-text, digit-strings, or a manifest "
        "(CSV or JSONL with columns image, audio, text, label)",
    )
    train.add_argument("--root", metavar="DIR", help="folder of the recorded data, or of a manifest's paths")
    train.add_argument("--modalities", metavar="A,B", help="which modalities (default: all that there are)")
    train.add_argument(
        "--fusion",
        metavar="NAME",
        help="queries, concat, gated, source, cross, bottleneck, low_rank; two_tower for retrieval; transcriber or "
        "captioner for the texts of digit-strings",
    )
    for flag, kind, text in _SETTINGS:
        train.add_argument(flag, type=kind, metavar="N", help=text)
    train.add_argument("--precision", choices=("no", "bf16", "fp16"), help="autocast (default: no)")
    train.add_argument("--parallel", choices=("ddp", "fsdp"), help="of several processes (default: ddp)")
    train.add_argument("--strict", action="store_true", help="a broken file stops the run instead of being skipped")
    train.add_argument("--config", type=Path, metavar="FILE", help="settings in YAML, such as RUN/config.yaml")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other setting, its value in YAML: --set experts=product --set 'options={task: multilabel}'; entries "
        "of encoders, options, positions and start add to those of the preset and the file, null takes one away",
    )
    train.add_argument("--out", type=Path, metavar="RUN", help="folder of the run")
    train.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run; nothing else may be given")
    train.set_defaults(run=_guarded("train", _train), fail=train.error)


def _add_eval(commands: Any) -> None:
    evaluate = commands.add_parser(
        "eval",
        help="test a trained model",
        description="Test the best weights of a run: accuracy with everything and with each modality missing, per "
        "class, as text and in RUN/eval.json; draws RUN/confusion.png and RUN/attention.png.",
    )
    evaluate.add_argument("run_folder", type=Path, metavar="RUN")
    evaluate.add_argument("--data", metavar="NAME", help="other data than the run's own")
    evaluate.add_argument("--root", metavar="DIR", help="where they are now")
    evaluate.add_argument(
        "--split",
        choices=("train", "validation", "test", "all"),
        help="(default: test; all of another manifest than the run's own where no row has a split)",
    )
    evaluate.add_argument("--json", action="store_true", help="print one JSON object instead of lines to read")
    evaluate.set_defaults(run=_guarded("eval", _eval))


def _add_predict(commands: Any) -> None:
    predict = commands.add_parser(
        "predict",
        help="ask a trained model about files",
        description="Write one JSON object a line: name, answer, scores, mass by modality, the tokens with most "
        "attention. A broken file is named on standard error and skipped.",
    )
    predict.add_argument("run_folder", type=Path, metavar="RUN")
    predict.add_argument("files", type=Path, nargs="+", metavar="FILE", help="images, sounds, texts, or manifests")
    predict.add_argument(
        "--together",
        action="store_true",
        help="all files are parts of one sample; a broken one skips it",
    )
    predict.add_argument("--root", type=Path, metavar="DIR", help="of a manifest's paths (default: its folder)")
    predict.add_argument("--links", type=natural, default=3, metavar="N", help="tokens told (default: 3)")
    predict.add_argument("--strict", action="store_true", help="a broken file ends it")
    predict.set_defaults(run=_guarded("predict", _predict))


def _add_search(commands: Any) -> None:
    search = commands.add_parser(
        "search",
        help="rank one modality by another",
        description="For each query, the nearest samples by another modality, as one JSON object a line. RUN is one of "
        "train --fusion two_tower.",
    )
    search.add_argument("run_folder", type=Path, metavar="RUN")
    search.add_argument("queries", type=Path, nargs="+", metavar="QUERY", help="files or manifests")
    search.add_argument(
        "--among", type=Path, nargs="+", required=True, metavar="FILE", help="what is ranked: files or manifests"
    )
    search.add_argument("--modality", required=True, metavar="NAME", help="by which of its modalities")
    search.add_argument("--count", type=positive, default=5, metavar="N", help="how many are told (default: 5)")
    search.add_argument("--root", type=Path, metavar="DIR", help="of a manifest's paths (default: its folder)")
    search.add_argument("--strict", action="store_true", help="a broken file ends it")
    search.set_defaults(run=_guarded("search", _search))


def _add_results(commands: Any) -> None:
    results = commands.add_parser(
        "results",
        help="train and measure every model of the published tables",
        description="Train every task, form and seed that the results file lacks, append a row for each, print the "
        "tables. Ended at any moment and started again, it goes on where it stopped.",
        epilog="Many hours for everything. python docs/update_readme.py puts the tables into README.md.",
    )
    results.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder of MNIST and FSDD")
    results.add_argument(
        "--json",
        type=Path,
        default=Path("benchmarks/results/learning/results.json"),
        metavar="FILE",
        help="(default: %(default)s)",
    )
    results.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs are kept (default: ./%(default)s)"
    )
    results.add_argument("--seeds", type=positive, default=5, metavar="N", help="(default: 5)")
    results.add_argument(
        "--task",
        nargs="+",
        default=[],
        choices=("clean", "speaker", "hard", "find", "retrieval", "sentences", "speed"),
        help="only these",
    )
    results.add_argument("--form", nargs="+", default=[], metavar="NAME", help="only these forms")
    results.set_defaults(run=_guarded("results", _results))


def _guarded(name: str, run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Mistakes and broken data end with one line and status 1, not with a traceback."""

    def guarded(options: argparse.Namespace) -> int:
        from crossmodal.data.espeak import EspeakError
        from crossmodal.train.run import RunError

        try:
            return run(options)
        except BrokenPipeError:  # whoever reads has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except (RunError, EspeakError, ValueError, OSError, FloatingPointError) as error:
            print(f"crossmodal {name}: {error}", file=sys.stderr)
            return 1

    return guarded


def _train(options: argparse.Namespace) -> int:
    from crossmodal.train.run import resume_run, start_run

    given = _given(options)
    if options.resume:
        if given or options.out or options.config:
            options.fail("--resume goes on with the settings of the run; nothing else may be given")
        resume_run(options.resume)
        return 0
    if options.out is None:
        options.fail("the argument --out is required")
    from crossmodal.train.config import is_whole, make_config, merge, read_config
    from crossmodal.train.presets import PRESETS

    written = read_config(options.config) if options.config else {}
    data = given.get("data") or written.get("data")
    # What a whole file does not have was taken away on purpose, such as an entry of the preset.
    preset = {} if is_whole(written) else PRESETS.get(str(data), {})
    start_run(make_config(merge(merge(preset, written), given)), options.out)
    return 0


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that flags name."""
    names = ["data", "root", "fusion", "precision", "parallel"]
    names += [flag.strip("-").replace("-", "_") for flag, _, _ in _SETTINGS]
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.modalities:
        given["modalities"] = [name.strip() for name in options.modalities.split(",")]
    if options.strict:
        given["strict"] = True
    if options.set:
        from crossmodal._extras import require
        from crossmodal.train.config import merge

        yaml = require("yaml", distribution="pyyaml", extra="train")
        for setting in options.set:
            name, found, value = setting.partition("=")
            if not found:
                options.fail(f"argument --set: NAME=VALUE is wanted, got {setting!r}")
            try:
                given = merge(given, {name.replace("-", "_"): yaml.safe_load(value)}, keep_none=True)
            except yaml.YAMLError as error:
                raise ValueError(f"--set {setting} is no YAML: {error}") from error
    return given


def _eval(options: argparse.Namespace) -> int:
    from crossmodal.train.evaluation import evaluate_run
    from crossmodal.train.examine import summary

    found = evaluate_run(options.run_folder, data=options.data, root=options.root, split=options.split)
    print(json.dumps(found) if options.json else summary(found))
    return _tell_skipped("eval", found["skipped"])


def _predict(options: argparse.Namespace) -> int:
    from crossmodal.train.evaluation import open_run
    from crossmodal.train.inputs import Inputs
    from crossmodal.train.predict import predict

    model, description, _ = open_run(options.run_folder)
    inputs = Inputs(description, root=options.root, strict=options.strict)
    samples = inputs.samples(options.files, together=options.together)
    for row in predict(model, description, samples, links=options.links):
        print(json.dumps(row, ensure_ascii=False), flush=True)
    return _tell_skipped("predict", inputs.skipped)


def _search(options: argparse.Namespace) -> int:
    from crossmodal.train.evaluation import open_run
    from crossmodal.train.inputs import Inputs
    from crossmodal.train.search import search

    model, description, _ = open_run(options.run_folder)
    inputs = Inputs(description, root=options.root, strict=options.strict)
    rows = search(
        model,
        description,
        inputs.samples(options.queries),
        inputs.samples(options.among),
        options.modality,
        count=options.count,
    )
    for row in rows:
        print(json.dumps(row, ensure_ascii=False), flush=True)
    return _tell_skipped("search", inputs.skipped)


def _results(options: argparse.Namespace) -> int:
    from crossmodal.learning.command import results

    return results(
        options.root, options.json, options.runs, seeds=options.seeds, tasks=options.task, forms=options.form
    )


def _tell_skipped(name: str, skipped: list[str]) -> int:
    """Status 0 all the same: skipping is what was asked for without --strict."""
    for problem in skipped:
        print(f"crossmodal {name}: skipped: {problem}", file=sys.stderr)
    if skipped:
        print(f"crossmodal {name}: {len(skipped)} skipped", file=sys.stderr)
    return 0
