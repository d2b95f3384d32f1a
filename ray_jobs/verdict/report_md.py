"""report.md: the report for terminals, reviews and chat."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ray_jobs.verdict.inputs import MODELS
from ray_jobs.verdict.plots import Picture
from ray_jobs.verdict.plots_search import duration
from ray_jobs.verdict.words import (
    HEADLINES,
    MISSING,
    percent,
    printable,
    sentence,
    signed,
    span,
    trial_settings,
)


def markdown_report(report: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """The report without its answers side by side, which only the page has."""
    shown = {picture.name: f"![{safe(picture.alt)}]({picture.name}.png)" for picture in pictures}
    parts = [
        f"# {HEADLINES[report['decision']]}",
        safe(sentence(report["reason"])),
        _table(("figure", "value"), _figures(report)),
        shown.get("difference"),
        "## All candidates" if "candidates" in report else None,
        _candidates(report.get("candidates", ())),
        "## By source",
        _sources(report),
        shown.get("checks"),
        "## Judge",
        _table(("known pairs", "agreement", "trusted"), [_trust(report["judge_trust"])]),
        "## Guards" if report["guards"] else None,
        _guards(report["guards"]),
        "## Search" if report["tune"]["trials"] else None,
        _trials(report),
        shown.get("curves"),
        "## Rows without a score",
        _missing(report),
        "## Time",
        _table(("stage", "time"), _times(report["timings_s"])),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def safe(text: object) -> str:
    """Text that Markdown shows as it is, on one line: no markup, no HTML, no table bars, nothing that a
    terminal obeys."""
    line = printable(" ".join(str(text).split()))
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*\[\]|#!~$])", r"\\\1", line)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)  # inside a word it is no markup


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    cells = [[safe(cell) for cell in row] for row in rows]
    if not cells:
        return ""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _figures(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    adjusted, checks = report["length_adjusted"], report["program_checks"]["overall"]
    rows = [
        ("metric", report["metric"]),
        ("score, candidate minus base", f"{signed(report['mean_difference'])} ({span(report['ci95'])})"),
        ("p", f"{report['p_value']:.2g}"),
        ("at equal length", f"{signed(adjusted['difference'])} ({span(adjusted['ci95'])})"),
        ("wins, ties, losses", f"{report['wins']}, {report['ties']}, {report['losses']}"),
        ("prompts scored for both", f"{report['num_scored_both']} of {report['num_prompts']}"),
    ]
    if checks:
        change = f"{percent(checks['base'])} to {percent(checks['candidate'])}"
        rows.append(("right answers, checked by a program", f"{change} of {checks['n']}"))
    if report["min_detectable_difference"] is not None:
        rows.append(("smallest difference that could be seen", f"{report['min_detectable_difference']:.2g}"))
    return rows


def _candidates(rows: Sequence[Mapping[str, Any]]) -> str:
    """All candidates against the same base; p-values are corrected for all of them."""
    head = ("candidate", "trial", "difference", "95 % interval", "p", "p, Holm", "checked", "decision")
    return _table(
        head,
        [
            (
                row["candidate"],
                row["trial"] or MISSING,
                signed(row["mean_difference"]),
                span(row["ci95"]),
                f"{row['p_value']:.2g}",
                f"{row['p_value_holm']:.2g}",
                percent(row["program_accuracy"]),
                HEADLINES[row["decision"]],
            )
            for row in rows
        ],
    )


def _sources(report: Mapping[str, Any]) -> str:
    head = (
        "source",
        "prompts",
        "judge: base",
        "candidate",
        "difference",
        "95 % interval",
        "checked: base",
        "candidate",
    )
    families = report["program_checks"]["families"]
    rows = []
    for name, row in report["by_source"].items():
        family = families.get(name, {})
        scores = (
            f"{row['base']:.2f}",
            f"{row['candidate']:.2f}",
            signed(row["difference"]),
            span(row["ci95"]),
        )
        rows.append((name, row["n"], *scores, *(percent(family.get(model)) for model in MODELS)))
    return _table(head, rows)


def _trust(trust: Mapping[str, Any]) -> tuple[object, ...]:
    ends = trust["ci95"]
    interval = f" ({percent(ends[0])} to {percent(ends[1])})" if ends else ""
    return trust["pairs"], percent(trust["agreement"]) + interval, "yes" if trust["trusted"] else "no"


def _guards(guards: Sequence[Mapping[str, Any]]) -> str:
    words = {True: "held", False: "broken", None: "not measured"}
    return _table(
        ("guard", "limit", "found", "result"),
        [(row["name"], f"{row['limit']:.3g}", _number(row["value"]), words[row["held"]]) for row in guards],
    )


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3g}"


def _trials(report: Mapping[str, Any]) -> str:
    rows = [
        (
            f"{trial['trial_id']}{' (best)' if trial['trial_id'] == report['tune']['best'] else ''}",
            trial.get("status"),
            percent(trial.get("heldout_accuracy")),
            trial_settings(trial.get("config")),
        )
        for trial in report["tune"]["trials"]
    ]
    return _table(("trial", "status", "held-out accuracy", "settings"), rows)


def _missing(report: Mapping[str, Any]) -> str:
    missing = report["missing"]
    rows = [
        (model, number, reason) for model in MODELS for reason, number in report["failures"][model].items()
    ]
    low, high = (
        missing["mean_difference_if_all_went_to_base"],
        missing["mean_difference_if_all_went_to_candidate"],
    )
    text = f"{missing['rows']} of {report['num_prompts']} prompts lack a score for one model or both."
    if not rows:
        return text
    worst = (
        f"Had they all gone one way, the mean difference would lie between {signed(low)} and {signed(high)}."
    )
    return f"{text} {worst}\n\n{_table(('model', 'rows', 'reason'), rows)}"


def _times(timings_s: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, duration(value)) for name, value in timings_s.items() if isinstance(value, int | float)]
