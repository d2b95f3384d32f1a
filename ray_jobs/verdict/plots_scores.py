"""Pictures of scores, checks and the judge."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ray_jobs.verdict.inputs import BASE, CANDIDATE
from ray_jobs.verdict.plots_style import Palette, clean, forest, size
from ray_jobs.verdict.scored import ScoredRows
from ray_jobs.verdict.words import percent

MAX_POINTS = 600
_BY_LENGTH = {
    "chosen_longer": "better one longer",
    "chosen_shorter": "better one shorter",
    "similar": "of similar length",
}


def draw_difference(
    figure: Figure, palette: Palette, report: Mapping[str, Any], rows: ScoredRows
) -> str | None:
    adjusted = report["length_adjusted"]
    lines = [
        ("all prompts", report["mean_difference"], report["ci95"]),
        ("at equal length", adjusted["difference"], adjusted["ci95"]),
    ]
    sources = report["by_source"]
    if len(sources) > 1:
        lines += [(name, row["difference"], row["ci95"]) for name, row in list(sources.items())[:20]]
    size(figure, 0.9 + 0.28 * len(lines))
    axes = figure.add_subplot()
    forest(axes, palette, lines)
    axes.set_xlabel("candidate minus base, 95 % intervals", loc="right")
    shown = ", ".join(f"{name} {value:+.2f}" for name, value, _ in lines if value is not None)
    return f"Mean score differences by {rows.metric} with 95 % intervals: {shown}."


def draw_checks(
    figure: Figure,
    palette: Palette,
    report: Mapping[str, Any],
    rows: ScoredRows,  # noqa: ARG001
) -> str | None:
    checks = report["program_checks"]
    if checks["overall"] is None:
        return None
    lines = [("all", checks["overall"]), *list(checks["families"].items())[:20]]
    size(figure, 0.9 + 0.3 * len(lines))
    axes = figure.add_subplot()
    axes.grid(axis="x", color=palette.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    for index, (_, row) in enumerate(lines):
        shares = [100 * row[BASE], 100 * row[CANDIDATE]]
        axes.plot(shares, [index, index], color=palette.grid, linewidth=3)
    _points(axes, palette, [(100 * row[BASE], 100 * row[CANDIDATE]) for _, row in lines])
    axes.set_yticks(range(len(lines)), [clean(name) for name, _ in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlim(-3, 103)
    axes.set_xlabel("right answers by program (%)")
    axes.spines["left"].set_visible(False)
    _legend(figure, palette)
    overall = checks["overall"]
    return (
        f"Program-checked accuracy: base {percent(overall[BASE])}, candidate {percent(overall[CANDIDATE])} "
        f"on {overall['n']} prompts."
    )


def draw_scores(figure: Figure, palette: Palette, report: Mapping[str, Any], rows: ScoredRows) -> str | None:
    size(figure, 2.6)
    both, change = figure.subplots(1, 2, width_ratios=(1, 1))
    low, high = rows.score_range
    edges = np.linspace(low - 0.25, high + 0.25, max(2, min(30, round((high - low) * 4) + 3)))
    for scores, colour, style in (
        (rows.base_scores, palette.base, {"linestyle": "--"}),
        (rows.candidate_scores, palette.candidate, {}),
    ):
        both.hist(scores, edges, histtype="stepfilled", color=colour, alpha=0.18)
        both.hist(scores, edges, histtype="step", color=colour, linewidth=1.6, **style)
    both.set_xlabel("score")
    both.set_ylabel("answers")
    differences = rows.differences
    reach = max(1.0, float(np.abs(differences).max()))
    change.hist(differences, np.linspace(-reach, reach, 25), color=palette.muted, alpha=0.45)
    change.axvline(0, color=palette.muted, linewidth=1)
    change.axvline(report["mean_difference"], color=palette.candidate, linewidth=2)
    change.set_xlabel("candidate minus base")
    _legend(figure, palette)
    means = (report["models"][model]["mean_score"] for model in (BASE, CANDIDATE))
    return "Distribution of scores: base mean {:.2f}, candidate mean {:.2f}.".format(*means)


def draw_lengths(figure: Figure, palette: Palette, report: Mapping[str, Any], rows: ScoredRows) -> str | None:
    size(figure, 2.8)
    axes = figure.add_subplot()
    step = max(1, -(-rows.base_scores.size // MAX_POINTS))
    axes.grid(color=palette.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    for lengths, scores, colour, marker in (
        (rows.base_lengths, rows.base_scores, palette.base, "s"),
        (rows.candidate_lengths, rows.candidate_scores, palette.candidate, "o"),
    ):
        axes.scatter(
            lengths[::step], scores[::step], s=14, marker=marker, color=colour, alpha=0.55, linewidths=0
        )
    axes.set_xlabel("answer length (characters)")
    axes.set_ylabel("score")
    _legend(figure, palette)
    slope = report["score_length_slope"]["same_prompt"]["per_100_characters"]
    found = "cannot be told" if slope is None else f"{slope:+.3f} per 100 characters"
    return f"Scores against answer lengths; between answers to one prompt the score changes by {found}."


def draw_trust(
    figure: Figure,
    palette: Palette,
    report: Mapping[str, Any],
    rows: ScoredRows,  # noqa: ARG001
) -> str | None:
    trust = report["judge_trust"]
    if not trust["pairs"] or trust["agreement"] is None:
        return None
    lines = [("all pairs", trust)]
    lines += list((trust.get("by_source") or {}).items())[:16]
    by_length = trust.get("by_length_difference") or {}
    lines += [(_BY_LENGTH.get(name, name), row) for name, row in by_length.items()]
    size(figure, 0.9 + 0.28 * len(lines))
    axes = figure.add_subplot()
    points = [(name, _percent(row["agreement"]), _percents(row["ci95"])) for name, row in lines]
    forest(axes, palette, points, zero=50.0)
    axes.set_xlim(-3, 103)
    level = f"{100 * trust.get('level', 0.95):.4g} %"
    axes.set_xlabel(f"agreement (%), {level} intervals; line: chance", loc="right")
    share = percent(trust["agreement"], 0)
    return f"The judge agrees with {share} of {trust['pairs']} known pairs; chance is 50 %."


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _percents(ends: Any) -> list[float] | None:
    return None if ends is None else [100 * end for end in ends]


def _points(axes: Any, palette: Palette, pairs: list[tuple[float, float]]) -> None:
    rows = range(len(pairs))
    axes.plot([base for base, _ in pairs], rows, "s", color=palette.base, markersize=6)
    axes.plot([candidate for _, candidate in pairs], rows, "o", color=palette.candidate, markersize=6)


def _legend(figure: Figure, palette: Palette) -> None:
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], marker="s", linestyle="", color=palette.base, label="base"),
        Line2D([], [], marker="o", linestyle="", color=palette.candidate, label="candidate"),
    ]
    figure.legend(
        handles=marks, loc="outside upper right", ncols=2, frameon=False, labelcolor=palette.ink, fontsize=10
    )
