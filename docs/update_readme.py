"""Writes README's demo section from docs/demo/metrics.json: after `crossmodal demo --out docs/demo`, run this file."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- from docs/demo/metrics.json by docs/update_readme.py -->", "<!-- end -->"
MODALITIES = ("image", "text", "audio")
ACCURACIES = {"one modality alone": "single", "fused, this one missing": "missing", "fused, this one noise": "noise"}


def demo_section(metrics: dict[str, Any]) -> str:
    """Two tables: accuracies on the test split, times of the operator beside plain torch's."""
    lines = [f"| test accuracy | {' | '.join(MODALITIES)} |", "|---|---|---|---|"]
    for name, key in ACCURACIES.items():
        lines.append(f"| {name} | " + " | ".join(f"{metrics[key][modality]:.3f}" for modality in MODALITIES) + " |")
    lines.append(f"| fused, all there | {metrics['fused']:.3f} | | |")
    threads = metrics["speed"]["threads"]
    lines += ["", f"| float32, {threads} thread{'s' * (threads > 1)} | fused | plain torch | cat + SDPA |"]
    lines.append("|---|---|---|---|")
    for case in metrics["speed"]["cases"]:
        others = " | ".join(f"{case['speedup'][other]:.1f}x as long" for other in ("reference", "sdpa"))
        lines.append(f"| {case['name']}, {case['what']} | {case['milliseconds']['fused']:.2f} ms | {others} |")
    return "\n".join(lines)


def main() -> None:
    readme = ROOT / "README.md"
    metrics = json.loads((ROOT / "docs" / "demo" / "metrics.json").read_text())
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{demo_section(metrics)}\n{END}{after}")


if __name__ == "__main__":
    main()
