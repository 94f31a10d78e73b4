"""The benchmarks: what is measured on a clock of our own, who is timed, what a file holds, what counts as slower."""

import contextlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import crossmodal
from crossmodal import cli
from crossmodal.bench import command, regressions, results, smoke
from crossmodal.bench.answers import judge
from crossmodal.bench.case import PASSES, SUBJECT, Case, UnavailableError
from crossmodal.bench.comparison import compare, fastest_opponent
from crossmodal.bench.machine import describe_machine, slug
from crossmodal.bench.memory import peak_mib
from crossmodal.bench.ops import OPS
from crossmodal.bench.ops._inputs import Inputs, Problem
from crossmodal.bench.peak import Peak
from crossmodal.bench.ratios import geometric_mean, paired_ratios, quantile
from crossmodal.bench.run import DTYPES, RunConfig
from crossmodal.bench.shapes import Shape
from crossmodal.bench.timing import Effort, Timed, interleave

ROOT = Path(__file__).resolve().parent.parent
PEAK = Peak({"float32": 100.0, "bfloat16": 200.0}, {"L1": 200.0, "L2": 100.0, "DRAM": 50.0})
BRIEF = Effort(seconds=0.0, fewest_rounds=3, warm_up=1)
SMALL = {
    "fuse": Shape("small", 2, 2, 5, (7, 4), 16, shortest=2),
    "varlen": Shape("small", 3, 2, 7, (7,), 16, shortest=2),
    "associate": Shape("small", 2, 2, 5, (9,), 16, reduce="heads"),
}


def small(op: str) -> Shape:
    return SMALL.get(op, Shape("small", 2, 2, 5, (7,), 16))


# -- timing on a fake clock --------------------------------------------------------------------


class FakeClock:
    """Time passes when a way is run, and never else."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def way(self, name: str, *seconds: float, preparing: float = 0.0) -> Timed:
        """Takes these seconds in turn, the last ever after."""
        left = list(seconds)

        def prepare() -> None:
            self.now += preparing

        def run(_: None) -> None:
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return Timed(prepare, run)


def test_a_round_calls_every_way_once():
    clock = FakeClock()
    ways = {name: clock.way(name, 1.0) for name in "abc"}
    interleave(ways, Effort(seconds=0, fewest_rounds=4, warm_up=1), random.Random(0), clock)
    measured = clock.calls[3:]
    rounds = [measured[i : i + 3] for i in range(0, len(measured), 3)]
    assert [sorted(one) for one in rounds] == [["a", "b", "c"]] * 4


def test_the_order_changes_from_round_to_round():
    clock = FakeClock()
    ways = {name: clock.way(name, 1.0) for name in "abc"}
    interleave(ways, Effort(seconds=0, fewest_rounds=20, warm_up=1), random.Random(0), clock)
    assert len({tuple(clock.calls[i : i + 3]) for i in range(3, len(clock.calls), 3)}) > 1


def test_warm_up_and_preparation_are_not_counted():
    clock = FakeClock()
    ways = {"a": clock.way("a", 50.0, 60.0, 2.0, preparing=7.0)}
    assert interleave(ways, Effort(seconds=0, fewest_rounds=3, warm_up=2), random.Random(0), clock) == {"a": [2.0] * 3}


def test_a_short_call_is_repeated_within_a_sample_and_the_sample_divided():
    clock = FakeClock()
    samples = interleave(
        {"a": clock.way("a", 0.25)}, Effort(0, 2, sample_seconds=1.0, warm_up=1), random.Random(0), clock
    )
    assert samples == {"a": [0.25, 0.25]}
    assert len(clock.calls) == 1 + 2 * 4


def test_measuring_ends_when_the_time_is_up_or_the_most_rounds_are_made():
    for seconds, expected in ((10.0, 10), (1e9, 12), (0.0, 3)):
        clock = FakeClock()
        effort = Effort(seconds, fewest_rounds=3, most_rounds=12, warm_up=1)
        assert len(interleave({"a": clock.way("a", 1.0)}, effort, random.Random(0), clock)["a"]) == expected


# -- statistics --------------------------------------------------------------------------------


def test_quantiles_lie_between_neighbours():
    values = [4.0, 1.0, 3.0, 2.0, 5.0]
    assert [quantile(values, share) for share in (0, 0.2, 0.5, 0.9, 1)] == pytest.approx([1, 1.8, 3, 4.6, 5])


def test_a_quantile_of_nothing_is_a_value_error():
    with pytest.raises(ValueError, match="needs at least one value"):
        quantile([], 0.5)


def test_ratios_are_formed_within_rounds():
    """A machine that slows down eightfold in the middle changes the times, not what is said about them."""
    fast, slow = [1.0, 1.0, 8.0, 8.0], [2.0, 2.0, 16.0, 16.0]
    assert paired_ratios(slow, fast) == (2.0, 2.0, 2.0)


def test_geometric_mean_of_a_factor_and_its_inverse_is_one():
    assert geometric_mean([4.0, 0.25]) == pytest.approx(1.0)


def test_the_fastest_opponent_is_never_the_subject():
    samples = {SUBJECT: [1.0], "sdpa": [3.0], "math": [2.0], "sdpa_ready": [1.5]}
    assert fastest_opponent(samples, [SUBJECT, "sdpa", "math"]) == "math"
    assert fastest_opponent(samples, [SUBJECT]) == ""


# -- who is timed ------------------------------------------------------------------------------


def case_with(*opponents) -> Case:
    """Attention of a small size with these (name, call) in the ring."""
    inputs = Inputs(torch.float32, seed=0)
    query, key, value, dout = (inputs.normal(2, 2, n, 16) for n in (5, 7, 7, 5))
    problem = Problem((query, key, value), dout, torch.float32)
    reference = problem.provider("reference", crossmodal.reference.attention)
    named = [problem.provider(name, call) for name, call in (*opponents, (SUBJECT, crossmodal.attention))]
    exact = problem.exact(crossmodal.reference.attention)
    return Case("attention", "small", (2, 2, 5, 7, 16), torch.float32, exact, reference, (reference, *named), 1e6)


def refusing(query, key, value):
    raise RuntimeError("No available kernel.\nAborting execution.")


def with_nan(query, key, value):
    return scaled_dot_product_attention(query, key, value) * float("nan")


def without_gradient_of_value(query, key, value):
    return scaled_dot_product_attention(query, key, value.detach()) + 0 * value.sum()


WRONG = {
    "unscaled": lambda q, k, v: scaled_dot_product_attention(q, k, v, scale=1.0),
    "nan": with_nan,
    "wrong gradient": without_gradient_of_value,
    "wrong shape": lambda q, k, v: scaled_dot_product_attention(q, k, v)[:, :, :1].expand(-1, -1, 5, 16)[..., :1],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_opponent_is_reported_and_not_timed(name):
    rows, notes = compare(case_with((name, WRONG[name])), PEAK, BRIEF)
    assert {row.provider for row in rows} == {"reference", SUBJECT}
    assert [(note.provider, note.verdict) for note in notes] in ([(name, "wrong")], [(name, "refused")])


def test_a_wrong_opponent_is_not_even_called_by_the_clock():
    calls = []

    def wrong(query, key, value):
        calls.append(1)
        return scaled_dot_product_attention(query, key, value) + 1

    compare(case_with(("wrong", wrong)), PEAK, BRIEF)
    assert len(calls) == 1  # for its answer


def test_an_opponent_that_refuses_is_reported_with_its_first_line():
    verdict = judge(case_with(("flash", refusing)))["flash"]
    assert verdict == ("refused", "RuntimeError: No available kernel.")


def test_a_right_opponent_is_timed_in_all_passes():
    rows, notes = compare(case_with(("sdpa", scaled_dot_product_attention)), PEAK, BRIEF)
    assert not notes
    assert {(row.provider, row.which) for row in rows} == {
        (name, which) for name in ("reference", "sdpa", SUBJECT) for which in PASSES
    }


def test_a_case_that_crossmodal_leaves_to_plain_torch_is_refused_not_timed(monkeypatch):
    monkeypatch.setattr(sys.modules["crossmodal.ops.attention"], "plain_attention", lambda *arguments, **options: None)
    monkeypatch.setattr("crossmodal.ops._fusion.fusion_refusals", lambda problem: ["no kernel"])
    rows, notes = compare(case_with(), PEAK, BRIEF)
    assert {row.provider for row in rows} == {"reference"}
    assert [(note.provider, note.verdict) for note in notes] == [(SUBJECT, "refused")]


def test_speedup_of_the_fastest_opponent_over_itself_is_one():
    rows, _ = compare(case_with(("sdpa", scaled_dot_product_attention)), PEAK, BRIEF)
    for row in rows:
        assert row.fastest_opponent in ("reference", "sdpa")
        if row.provider == row.fastest_opponent:
            assert row.speedup_vs_fastest == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("op", OPS)
def test_every_provider_but_the_compiled_one_is_right(op, dtype):
    try:
        case = OPS[op].build(small(op), dtype, 0)
    except UnavailableError as error:
        pytest.skip(str(error))
    assert {provider.name for provider in case.providers} == set(OPS[op].providers)
    assert judge(case, only=frozenset(OPS[op].providers) - {"flex"}) == {}


@pytest.mark.slow
@pytest.mark.parametrize("shortest", [0, 2], ids=["plain", "padded"])
def test_the_compiled_provider_is_right(shortest):
    case = OPS["attention"].build(small("attention")._replace(shortest=shortest), torch.float32, 0)
    assert judge(case, only=frozenset({"flex"})) == {}


@pytest.mark.parametrize("op", OPS)
def test_operations_of_what_is_masked_do_not_count(op):
    shape = small(op)
    if not shape.shortest:
        shape = shape._replace(batch=64, shortest=1)
    try:
        case = OPS[op].build(shape, torch.float32, 0)
    except UnavailableError as error:
        pytest.skip(str(error))
    if op in ("associate", "overhead"):
        pytest.skip("has no padded cases")
    assert 0 < case.operations < shape.dense_operations


def test_what_does_less_than_two_operations_a_byte_is_limited_by_memory():
    assert PEAK.limit("float32", operations=1e9, num_bytes=1e9) == (pytest.approx(1 / 50), "memory")
    assert PEAK.limit("float32", operations=1e11, num_bytes=1e9) == (pytest.approx(1.0), "compute")


def test_peak_memory_sees_what_is_freed_before_the_call_returns():
    peak = peak_mib(lambda: torch.ones(64 << 18).sum())
    if peak is None:
        pytest.skip("this system does not tell")
    assert 60 < peak < 100


# -- results files -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> results.Results:
    rows, notes = compare(case_with(("sdpa", scaled_dot_product_attention), ("flash", refusing)), PEAK, BRIEF)
    return results.Results(describe_machine(1), PEAK, rows, notes)


def test_a_results_file_has_the_agreed_form(found, tmp_path):
    results.write(found, tmp_path / "deep" / "results.json")
    data = json.loads((tmp_path / "deep" / "results.json").read_text())
    assert {"machine", "peak", "rows"} <= set(data)
    assert {"cpu", "torch", "threads", "commit", "isa"} <= set(data["machine"])
    for row in data["rows"]:
        assert {"op", "shape", "dtype", "pass", "provider", "median_s", "p20_s", "p80_s"} <= set(row)
        assert {"percent_of_peak", "speedup_vs_fastest", "samples_s", "peak_memory_mib"} <= set(row)
        assert row["p20_s"] <= row["median_s"] <= row["p80_s"]
    assert data["not_timed"][0]["reason"] == "RuntimeError: No available kernel."


def test_what_is_written_is_read(found, tmp_path):
    file = tmp_path / "results.json"
    results.write(found, file)
    once = results.read(file)
    assert [row.key for row in once.rows] == [row.key for row in found.rows]
    results.write(once, file)
    assert results.read(file) == once
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("text", "reason"), [("{", "is no JSON"), ("{}", "'machine' is missing"), ("[]", "is no results file")]
)
def test_another_file_is_an_error_that_names_it(tmp_path, text, reason):
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(results.ResultsError) as error:
        results.read(file)
    assert str(file) in str(error.value) and reason in str(error.value)


def test_the_device_in_a_file_name_needs_no_quotes():
    machine = {"cpu": "Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz", "isa": "avx512_bf16", "threads": 2}
    assert slug(machine) == "intel-xeon-platinum-8488c-avx512_bf16-2-threads"


# -- comparison of two runs --------------------------------------------------------------------


def changed(found: results.Results, factor: float, which: str = "forward") -> results.Results:
    """The same run, with the speed-ups of crossmodal in one pass multiplied."""
    rows = []
    for row in found.rows:
        if row.provider == SUBJECT and row.which == which:
            row = results.Row(
                **{**vars(row), "speedups": {name: factor * value for name, value in row.speedups.items()}}
            )
        rows.append(row)
    return found._replace(rows=rows)


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (0.95, 0), (0.8, 1), (2.0, 0)])
def test_compare_fails_when_more_than_the_margin_of_a_speedup_is_lost(found, tmp_path, factor, status, capsys):
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    results.write(found, before)
    results.write(changed(found, factor), after)
    assert cli.main(["bench", "--compare", str(before), str(after), "--margin", "0.1"]) == status
    printed = capsys.readouterr()
    assert ("SLOWER" in printed.out) == bool(status)
    if status:
        assert "1 of 3 rows lost more than 10 % of their speed-up" in printed.err


def test_times_of_two_runs_are_not_compared(found):
    """On a machine of half the speed all times double, and nothing got slower."""
    slow = [results.Row(**{**vars(row), "median_s": 2 * row.median_s}) for row in found.rows]
    changes = regressions.find_regressions(found, found._replace(rows=slow)).changes
    assert len(changes) == 3 and not any(change.is_regression(0.01) for change in changes)


def test_compare_uses_the_opponent_that_was_the_fastest_before(found):
    fastest = {row.key: row.fastest_opponent for row in found.rows}
    for change in regressions.find_regressions(found, found).changes:
        assert change.opponent == fastest[change.key] and change.ratio == 1.0


def test_rows_that_one_run_lacks_are_told_and_are_no_regression(found):
    without = found._replace(rows=[row for row in found.rows if row.which != "both"])
    compared = regressions.find_regressions(found, without)
    assert compared.only_before == [("attention", "small", "float32", "both")]
    assert any(line.startswith("only before: attention, small") for line in regressions.report(compared, 0.1))


def test_compare_of_runs_with_nothing_in_common_fails(found, tmp_path, capsys):
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    results.write(found, before)
    results.write(found._replace(rows=[]), after)
    assert command.compare(before, after, 0.1) == 1
    assert "no row in common" in capsys.readouterr().err


def test_compare_with_a_file_that_is_not_there_is_told_without_a_traceback(tmp_path, capsys):
    assert cli.main(["bench", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1
    assert "a.json" in capsys.readouterr().err


# -- the smoke check ---------------------------------------------------------------------------


def with_samples(found: results.Results, ours: list[float], reference: list[float]) -> results.Results:
    samples = {SUBJECT: ours, "reference": reference}
    rows = [results.Row(**{**vars(row), "samples_s": samples.get(row.provider, ours)}) for row in found.rows]
    return found._replace(rows=[row for row in rows if row.which == "both"])


def test_smoke_names_a_kernel_that_is_slow_in_every_round(found):
    (line,) = smoke.failures(with_samples(found, [5.0] * 10, [1.0] * 10))
    assert line == (
        "attention, small, float32, both: takes 5.0 times as long as the reference in plain torch, allowed 2.5"
    )


def test_smoke_passes_over_rounds_that_others_disturbed(found):
    assert smoke.failures(with_samples(found, [5.0] * 7 + [1.0] * 3, [1.0] * 10)) == []


def test_smoke_fails_on_a_wrong_answer_and_passes_over_an_operator_that_is_not_there(found):
    note = results.NotTimed("fuse", "small", "float32", SUBJECT, "wrong", "out is off by 1")
    missing = note._replace(verdict="missing")
    assert smoke.broken(found._replace(not_timed=[note, missing])) == [
        f"fuse, small, float32: {SUBJECT} wrong: out is off by 1"
    ]


def test_smoke_times_the_reference_and_nobody_else():
    config = smoke.smoke_config(RunConfig())
    assert all(config.providers_of(op) == {"reference", SUBJECT} for op in OPS)


# -- the command -------------------------------------------------------------------------------


def test_the_command_offers_the_operators_and_dtypes_that_there_are():
    assert tuple(OPS) == cli._OPS
    assert tuple(DTYPES) == cli._DTYPES


def test_a_quick_run_has_a_case_of_every_operator():
    assert {op for op, _, _ in RunConfig(quick=True).cases()} == set(OPS)


def test_names_of_shapes_are_unique_within_an_operator():
    for op in OPS.values():
        names = [shape.name for shape in op.shapes]
        assert len(names) == len(set(names))


def test_missing_extra_says_what_to_install():
    script = "import sys; sys.modules['rich.console'] = None; import crossmodal.cli as c; "
    script += "sys.exit(c.main(['bench', '--quick']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert 'pip install "crossmodal[bench]"' in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_quick_run_prints_a_table_writes_results_and_draws(tmp_path, capsys):
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    arguments = ["bench", "--quick", "--op", "overhead", "--dtype", "float32", "--out", str(tmp_path)]
    assert cli.main([*arguments, "--json", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "overhead" in printed and "speed-up" in printed and "peak: float32" in printed
    (file,) = tmp_path.glob("*.json")
    assert {row.provider for row in results.read(file).rows} == {"reference", "sdpa", "math", SUBJECT}
    for picture in ("roofline.png", "speedup.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_pictures_are_drawn_of_any_run(found, tmp_path):
    pytest.importorskip("matplotlib")
    only_both = found._replace(rows=[row for row in found.rows if row.which == "both"])
    for run in (found, only_both, found._replace(rows=[])):
        command.draw(run, tmp_path)


@pytest.mark.slow
def test_pytest_benchmark_shows_the_samples_of_the_harness(tmp_path):
    pytest.importorskip("pytest_benchmark")
    file = tmp_path / "out.json"
    command_line = [sys.executable, "-m", "pytest", "benchmarks/bench_overhead.py", "--benchmark-only", "--quick"]
    command_line += ["--dtypes", "float32", f"--benchmark-json={file}", "-p", "no:cacheprovider"]
    # Within a test that has others beside it pytest-benchmark would do nothing.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command_line, cwd=ROOT, env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    shown = json.loads(file.read_text())["benchmarks"]
    assert len(shown) == 4 * len(PASSES)
    assert all(0 < one["stats"]["median"] < 1 and one["extra_info"]["fastest_opponent"] for one in shown)


def test_plain_pytest_does_not_collect_benchmarks():
    configuration = (ROOT / "pyproject.toml").read_text()
    assert 'testpaths = ["tests"]' in configuration


def test_garbage_collection_is_on_again_after_measuring():
    import gc

    clock = FakeClock()
    with contextlib.suppress(ZeroDivisionError):
        interleave({"a": Timed(lambda: None, lambda _: 1 / 0)}, BRIEF, random.Random(0), clock)
    interleave({"a": clock.way("a", 1.0)}, BRIEF, random.Random(0), clock)
    assert gc.isenabled()


def test_only_shapes_whose_names_contain_a_part_are_measured():
    config = RunConfig(ops=("attention",), shapes=("pool", "lon"), dtypes=("float32",))
    assert [shape.name for _, shape, _ in config.cases()] == ["long", "pooling", "pooling, batch 1"]
