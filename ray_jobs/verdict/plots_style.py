"""Colours and small parts that the pictures share."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 4.8
"""Inches; an SVG of this width has readable text on a phone, where it is shown at about its own size."""


@dataclass(frozen=True)
class Palette:
    """Colours by their use. Blue and orange differ for every kind of colour sight."""

    ink: str
    muted: str
    grid: str
    base: str
    candidate: str


PAPER = Palette(ink="#1b1f24", muted="#57606a", grid="#d0d7de", base="#b35900", candidate="#0b5cad")
# Stand-ins, replaced by the page's own colours, so that one drawing serves its light and its dark look.
PAGE = Palette(ink="#010203", muted="#010204", grid="#010205", base="#010206", candidate="#010207")


def clean(text: str, limit: int = 28) -> str:
    """A label that any font can draw: printable, on one line, not too long."""
    text = "".join(c if c.isprintable() and c.encode("utf-8", "ignore") else "\ufffd" for c in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def size(figure: Figure, height: float) -> None:
    figure.set_size_inches(WIDTH, height)


def forest(
    axes: Axes,
    palette: Palette,
    rows: Sequence[tuple[str, float | None, Sequence[float] | None]],
    zero: float = 0.0,
) -> None:
    """Labelled points with intervals, the first row on top, and a line where nothing differs."""
    axes.axvline(zero, color=palette.muted, linewidth=1)
    axes.grid(axis="x", color=palette.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    for index, (_, value, interval) in enumerate(rows):
        if interval is not None:
            axes.plot(interval, [index, index], color=palette.candidate, linewidth=2, solid_capstyle="round")
        if value is not None:
            axes.plot([value], [index], "o", color=palette.candidate, markersize=6)
    axes.set_yticks(range(len(rows)), [clean(label) for label, _, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
