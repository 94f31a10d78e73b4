"""One look for all of the demo's pictures."""

from pathlib import Path
from typing import Any

from crossmodal._extras import require

INK = "#1f2933"
FAINT = "#9aa5b1"
PALE = "#e4e7eb"
COLORS = {"image": "#1b6ca8", "text": "#c8553d", "audio": "#588157", "fused": "#3d3456"}
_SETTINGS = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "text.parse_math": False,  # names of classes are a user's; a dollar sign is one
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


class Picture:
    """A figure in the demo's look, drawn without a display and without matplotlib's global state.

    Args:
        width, height: in inches.
        title, subtitle: above everything.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """

    _PIXELS_PER_INCH = 130

    def __init__(self, width: float, height: float, title: str, subtitle: str = "") -> None:
        self._matplotlib = require("matplotlib", distribution="matplotlib", extra="demo")
        figure = require("matplotlib.figure", distribution="matplotlib", extra="demo")
        with self._matplotlib.rc_context(_SETTINGS):
            self.figure: Any = figure.Figure(figsize=(width, height), facecolor="white")
        self.figure.text(0.02, 1 - 0.16 / height, title, fontsize=15, fontweight="bold", va="top", color=INK)
        self.figure.text(0.02, 1 - 0.48 / height, subtitle, fontsize=10, va="top", color="#52606d")

    def axes(self, cell: Any, title: str = "") -> Any:
        """A pair of axes in a cell of a grid (``figure.add_gridspec``)."""
        with self._matplotlib.rc_context(_SETTINGS):
            axes = self.figure.add_subplot(cell)
            axes.set_title(title, pad=8)
        return axes

    def save(self, path: Path) -> None:
        """Write a PNG."""
        with self._matplotlib.rc_context(_SETTINGS):
            self.figure.savefig(path, dpi=self._PIXELS_PER_INCH)
