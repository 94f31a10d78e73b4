"""Writes docs/performance.md from the results files: run this file.

benchmarks/results/*.json   by `crossmodal bench --json FILE`; the newest
docs/trust/modules.json     by `python -m benchmarks.modules --json FILE`
docs/trust/pool.json        by `python -m benchmarks.pool --json FILE`
docs/trust/models.json      by `python -m benchmarks.models --json FILE`
docs/trust/threads.json     by `python -m benchmarks.threads --json FILE`
docs/trust/fuzz.json        by `python -m build_tools.fuzz --calls 20000 --json FILE`
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))

from update_readme import newest_results, read, speed_section  # noqa: E402

PAGE = ROOT / "docs" / "performance.md"
TRUST = ROOT / "docs" / "trust"


def machine_line(machine: dict[str, Any]) -> str:
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    return f"{machine['cpu']}, {machine['isa']}, {threads}, torch {machine['torch']}"


def modules_section(found: dict[str, Any]) -> str:
    lead, peak = found["lead of oneDNN over the BLAS"], found["peak, GFLOP/s"]
    lines = [
        "## Modules",
        "",
        "`torch.nn.MultiheadAttention` beside `crossmodal.nn.MultiheadAttention`, projections included",
        f"({found['shape']}; {machine_line(found['machine'])}; `python -m benchmarks.modules`).",
        f"On this machine oneDNN multiplies {lead['linear']:.2f} times as fast as the BLAS in float32,",
        f"{lead['weight gradient']:.2f} times in the gradient of a weight. How many times as long torch takes, and in",
        "brackets how many times as long it would take beside the products alone at the measured peak",
        f"({peak['float32']:.0f} GFLOP/s in float32, {peak['bfloat16']:.0f} in bfloat16), the most possible:",
        "",
    ]
    kinds = list(dict.fromkeys((row["dtype"], row["kind"]) for row in found["rows"]))
    lines.append("| | " + " | ".join(f"{dtype}, {kind}" for dtype, kind in kinds) + " |")
    lines.append("|---" * (1 + len(kinds)) + "|")
    for case in dict.fromkeys(row["case"] for row in found["rows"]):
        rows = {(r["dtype"], r["kind"]): r for r in found["rows"] if r["case"] == case}
        cells = [f"{r['times as long']['torch']:.2f}x ({r['at the limit']:.2f}x)" for r in map(rows.__getitem__, kinds)]
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def pool_section(found: dict[str, Any]) -> str:
    others = list(found["rows"][0]["times as long"])
    lines = [
        "## Pooling by learned queries",
        "",
        "`crossmodal.nn.AttentionPool` beside three ways to write it in torch, projections included, float32",
        f"({machine_line(found['machine'])}; `python -m benchmarks.pool`).",
        "Tokens are not projected: their projections are absorbed into the queries, and applied to the few rows that",
        "the queries found. The last column does the same by hand, for tokens without lengths or a mask. Sizes are",
        "batch, tokens, width, heads, queries:",
        "",
        "| | crossmodal | " + " | ".join(others) + " |",
        "|---" * (2 + len(others)) + "|",
    ]
    for row in found["rows"]:
        size = ", ".join(str(row[name]) for name in ("batch", "tokens", "width", "heads", "queries"))
        longer = " | ".join(f"{row['times as long'][other]:.1f}x as long" for other in others)
        milliseconds = row["milliseconds"]["crossmodal"]
        lines.append(f"| {row['name']} ({size}), {row['kind']} | {milliseconds:.1f} ms | {longer} |")
    return "\n".join(lines)


def models_section(found: dict[str, Any]) -> str:
    others = list(found["rows"][0]["times as long"])
    lines = [
        "## Whole models",
        "",
        f"Models of transformers {found['transformers']} at their real sizes, with random weights, float32",
        f"({machine_line(found['machine'])}; `python -m benchmarks.models`).",
        "",
        "| | crossmodal | " + " | ".join(others) + " |",
        "|---" * (2 + len(others)) + "|",
    ]
    for row in found["rows"]:
        longer = " | ".join(f"{row['times as long'][other]:.2f}x as long" for other in others)
        milliseconds = row["milliseconds"]["crossmodal"]
        lines.append(f"| {row['model']}, {row['kind']} | {milliseconds:.0f} ms | {longer} |")
    return "\n".join(lines)


def threads_section(found: dict[str, Any]) -> str:
    kinds = list(dict.fromkeys((row["dtype"], row["pass"]) for row in found["rows"] if row["shape"] != "control"))
    controls = ", ".join(f"{r['median']:.2f}x in {r['dtype']}" for r in found["rows"] if r["shape"] == "control")
    lines = [
        "## Threads",
        "",
        f"{found['threads']} threads beside one ({machine_line(found['machine'])}; `python -m benchmarks.threads`). "
        f"The control, `{next(r['pass'] for r in found['rows'] if r['shape'] == 'control')}` of matrices that fit the "
        f"cache: {controls}. Attention, geometric mean {found['geometric mean']:.2f}x:",
        "",
        "| | " + " | ".join(f"{dtype}, {kind}" for dtype, kind in kinds) + " |",
        "|---" * (1 + len(kinds)) + "|",
    ]
    for shape in dict.fromkeys(row["shape"] for row in found["rows"] if row["shape"] != "control"):
        times = {(r["dtype"], r["pass"]): r["median"] for r in found["rows"] if r["shape"] == shape}
        lines.append(f"| {shape} | " + " | ".join(f"{times[kind]:.2f}x" for kind in kinds) + " |")
    return "\n".join(lines)


def fuzz_section(found: dict[str, Any]) -> str:
    lines = [
        "## The same numbers",
        "",
        f"{found['calls']} random calls of ours and of torch {found['torch']}, outputs and every gradient, compared "
        f"with float64 (`python -m build_tools.fuzz`): {len(found['unexplained'])} differences without an explanation.",
        "",
        "| | outcome | calls |",
        "|---|---|---|",
    ]
    for family, counts in found["counts"].items():
        lines += [f"| {family} | {outcome} | {count} |" for outcome, count in counts.items()]
    return "\n".join(lines)


def page() -> str:
    parts = ["# Performance", "Every figure on this page is read from a results file by `docs/update_pages.py`."]
    if file := newest_results():
        section = speed_section(read(file), str(file.relative_to(ROOT)))
        section = section.replace("docs/speed/", "speed/")
        # Files of the repository, which the site does not hold.
        parts += ["## Operators", re.sub(r"\[([^\]]+)\]\((?:benchmarks|docs)/[^)]*\)", r"\1", section)]
    sections = {
        "threads": threads_section,
        "modules": modules_section,
        "pool": pool_section,
        "models": models_section,
        "fuzz": fuzz_section,
    }
    for name, section_of in sections.items():
        if (file := TRUST / f"{name}.json").exists():
            parts.append(section_of(json.loads(file.read_text())))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
