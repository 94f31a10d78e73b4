"""The command `crossmodal`.

What a command needs is imported when it runs, so that `--help` and mistakes in typing answer at once.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossmodal.arguments import natural, positive, positive_number, share
from crossmodal.training_commands import add_training_commands

_INTERRUPTED = 128 + signal.SIGINT  # what shells report for a process that SIGINT ended

# Those of crossmodal.bench, which to import takes the seconds that torch takes.
_OPS = ("attention", "fuse", "varlen", "weighted_sum", "softmax_weighted_sum", "associate", "overhead")
_DTYPES = ("float32", "bfloat16", "float16")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 good, 1 failed, 2 wrong usage, 130 interrupted."""
    from crossmodal._extras import MissingExtraError

    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except MissingExtraError as error:
        print(f"crossmodal: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="crossmodal",
        description="Fused cross-modal attention for PyTorch: try it, and see what it found on this machine.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        help="train, test and draw a model that fuses image, text and speech",
        description="Learn to recognise a digit from a handwritten image, a sentence and a spoken word, all of them "
        "damaged. Trains a model of all three modalities and one of each alone, tests them with modalities "
        "missing or turned to noise, draws where the model looked, and times the fused operator against "
        "plain torch. Nothing is downloaded; about a minute and a half on two cores.",
        epilog="Writes metrics.json, model.safetensors and PNG pictures to DIR. Ctrl-C keeps the best weights so "
        "far. The same seed gives the same numbers, times excluded.",
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("crossmodal-demo"),
        metavar="DIR",
        help="where results go; an earlier run's results there are replaced (default: ./%(default)s)",
    )
    demo.add_argument("--seed", type=natural, default=0, metavar="N", help="another N, another run (default: 0)")
    demo.add_argument(
        "--epochs", type=positive, metavar="N", help="passes over the training samples (default: 8, quick: 2)"
    )
    demo.add_argument(
        "--threads", type=positive, default=1, metavar="N", help="CPU threads, for timing too (default: 1)"
    )
    demo.add_argument(
        "--quick", action="store_true", help="a few seconds on a little data: everything runs, little is learnt"
    )
    demo.set_defaults(run=_demo)

    add_training_commands(commands)
    _add_bench(commands)

    info = commands.add_parser(
        "info",
        help="what was built and what this machine offers",
        description="Print how crossmodal was built, the instruction sets and devices of this machine, and which "
        "of them are in use.",
    )
    info.add_argument("--json", action="store_true", help="print one JSON object instead of lines to read")
    info.set_defaults(run=_info)
    return parser


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser(
        "bench",
        help="time the operators on this machine beside what torch offers",
        description="Time every operator against the ways to do the same with torch: in one process, interleaved, in "
        "random order, after all answers were compared with float64. Prints a table: time, share of this machine's "
        "measured peak, memory, speed-up over the fastest opponent with the right answer.",
        epilog="Many minutes for everything; --quick takes about one. Speed-ups are medians of ratios within a round; "
        "leave the machine alone meanwhile all the same.",
    )
    bench.add_argument("--quick", action="store_true", help="a few small shapes, briefly: a first impression")
    bench.add_argument("--op", nargs="+", metavar="NAME", default=(), help=f"only these of {', '.join(_OPS)}")
    bench.add_argument(
        "--shape", nargs="+", metavar="TEXT", default=(), help="only shapes whose names contain one of these"
    )
    bench.add_argument("--dtype", nargs="+", choices=_DTYPES, default=_DTYPES[:2], help="(default: float32 bfloat16)")
    bench.add_argument("--threads", type=positive, default=1, metavar="N", help="CPU threads (default: 1)")
    bench.add_argument(
        "--seconds", type=positive_number, default=2.0, metavar="S", help="for each pass of each shape (default: 2)"
    )
    bench.add_argument(
        "--json", type=Path, metavar="FILE", help="write all samples to FILE; a folder gets <date>-<device>.json"
    )
    bench.add_argument("--out", type=Path, metavar="DIR", help="draw roofline.png and speedup.png into DIR")
    bench.add_argument(
        "--smoke",
        action="store_true",
        help="for continuous integration: fail if a kernel is far slower than plain torch; under a minute",
    )
    bench.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A.json", "B.json"),
        help="measure nothing; fail if a row of B lost more than the margin of its speed-up in A",
    )
    bench.add_argument(
        "--margin", type=share, default=0.1, metavar="SHARE", help="for --compare, in [0, 1) (default: 0.1)"
    )
    bench.set_defaults(run=_bench, fail=bench.error)


def _demo(options: argparse.Namespace) -> int:
    from crossmodal.data.espeak import EspeakError
    from crossmodal.demo.config import DemoConfig, quick_config
    from crossmodal.demo.run import run_demo

    # A shell starts background jobs of a script with SIGINT ignored; stopping those must work too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    make = quick_config if options.quick else DemoConfig
    given = {"epochs": options.epochs} if options.epochs else {}
    try:
        run_demo(options.out, make(seed=options.seed, threads=options.threads, **given))
    except (EspeakError, OSError) as error:
        print(f"crossmodal demo: {error}", file=sys.stderr)
        return 1
    return 0


def _bench(options: argparse.Namespace) -> int:
    if unknown := sorted(set(options.op) - set(_OPS)):
        options.fail(f"argument --op: choose from {', '.join(_OPS)}, got {', '.join(unknown)}")
    from crossmodal.bench import command
    from crossmodal.bench.results import ResultsError
    from crossmodal.bench.run import RunConfig

    try:
        if options.compare:
            before, after = options.compare
            return command.compare(before, after, options.margin)
        config = RunConfig(
            ops=tuple(options.op),
            dtypes=tuple(options.dtype),
            threads=options.threads,
            quick=options.quick,
            seconds=options.seconds,
            shapes=tuple(options.shape),
        )
        if next(config.cases(), None) is None:
            options.fail(f"argument --shape: no shape's name contains {' or '.join(options.shape)}")
        if options.smoke:
            return command.check(config)
        return command.bench(config, command.Output(options.json, options.out))
    except (ResultsError, OSError) as error:
        print(f"crossmodal bench: {error}", file=sys.stderr)
        return 1


def _info(options: argparse.Namespace) -> int:
    from crossmodal.info import as_json, as_text, collect_info

    info = collect_info()
    print(as_json(info) if options.json else as_text(info))
    return 0


if __name__ == "__main__":
    sys.exit(main())
