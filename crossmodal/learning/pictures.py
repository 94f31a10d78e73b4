"""The results as pictures."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossmodal.demo.style import COLORS, Picture


def draw_mass(rows: Sequence[dict[str, Any]], path: Path) -> bool:
    """What the sound receives of the attention, by the loudness of the speech in its noise: a line per seed and the
    mean; False without rows that measured it.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    masses = [row["mass_by_snr"] for row in rows if "mass_by_snr" in row]
    if not masses:
        return False
    ratios = sorted(masses[0], key=float)
    places = [float(ratio) for ratio in ratios]
    picture = Picture(
        8, 4.2, "Sound that drowns loses attention", "AV-MNIST, hard, test data: share of the attention on sound"
    )
    axes = picture.axes(picture.figure.add_gridspec(1, 1, left=0.09, right=0.97, top=0.8, bottom=0.14)[0, 0])
    for mass in masses:
        axes.plot(places, [mass[ratio] for ratio in ratios], color=COLORS["audio"], alpha=0.3, linewidth=1)
    mean = [statistics.mean(mass[ratio] for mass in masses) for ratio in ratios]
    axes.plot(places, mean, color=COLORS["audio"], linewidth=2, marker="o")
    axes.set(xlabel="speech over noise, dB", ylim=(0, None))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return True
