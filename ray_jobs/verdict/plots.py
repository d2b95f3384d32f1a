"""The pictures of a report, each as PNG and as SVG that takes its colours from the page's style sheet."""

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ray_jobs.verdict.plots_scores import draw_checks, draw_difference, draw_lengths, draw_scores, draw_trust
from ray_jobs.verdict.plots_search import draw_curves, draw_parallel, draw_time
from ray_jobs.verdict.plots_style import PAGE, PAPER, Palette
from ray_jobs.verdict.scored import ScoredRows


@dataclass(frozen=True)
class Picture:
    """One drawing. `alt` says in words what it shows."""

    name: str
    title: str
    alt: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class _Plot:
    name: str
    title: str
    draw: Callable[[Figure, Palette, Mapping[str, Any], ScoredRows], str | None]
    """Draws into a figure and returns the alternative text, or None when there is nothing to show."""


PLOTS = (
    _Plot("difference", "Score difference, candidate minus base", draw_difference),
    _Plot("checks", "Program-checked accuracy", draw_checks),
    _Plot("scores", "Scores of both models", draw_scores),
    _Plot("lengths", "Score against answer length", draw_lengths),
    _Plot("trust", "The judge on pairs whose better answer is known", draw_trust),
    _Plot("curves", "Held-out pairs during training", draw_curves),
    _Plot("parallel", "Settings of each trial and what they led to", draw_parallel),
    _Plot("time", "Where time went", draw_time),
)
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a source or a setting may be named anything
    "figure.constrained_layout.use": True,
}


def draw_all(report: Mapping[str, Any], rows: ScoredRows) -> list[Picture]:
    """All pictures that the report has something for, in the order of the page."""
    pictures = []
    for plot in PLOTS:
        with rc_context({**_STYLE, "svg.hashsalt": plot.name}):
            picture = _picture(plot, report, rows)
        if picture:
            pictures.append(picture)
    return pictures


def _picture(plot: _Plot, report: Mapping[str, Any], rows: ScoredRows) -> Picture | None:
    page, paper = Figure(), Figure()
    alt = plot.draw(page, PAGE, report, rows)
    if alt is None:
        return None
    plot.draw(paper, PAPER, report, rows)
    for figure, palette in ((page, PAGE), (paper, PAPER)):
        for axes in figure.axes:
            _restyle(axes, palette)
    return Picture(plot.name, plot.title, alt, _svg(page), _png(paper))


def _restyle(axes: Axes, palette: Palette) -> None:
    axes.tick_params(colors=palette.muted, labelcolor=palette.ink, length=3)
    axes.patch.set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(palette.muted)
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
        text.set_color(palette.ink)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _svg(figure: Figure) -> str:
    """The figure as an inline `<svg>`: colours and font from the page, no ids that clash between figures."""
    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font: (?:(\w+) )?([\d.]+)px [^;\"]*", _font, svg)
    for name, colour in vars(PAGE).items():
        svg = svg.replace(colour, f"var(--{name})")
    # Without a size of its own the picture takes the width that the page gives it.
    head, rest = svg.split(">", 1)
    return re.sub(r' (?:width|height)="[^"]*"', "", head) + ">" + rest


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match[1]}; " if match[1] else ""
    return f"{weight}font-size: {match[2]}px"
