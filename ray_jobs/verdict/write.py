"""The report as files: report.json, report.md, report.html and its pictures."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from ray_jobs.verdict.inputs import VerdictInputs
from ray_jobs.verdict.plots import draw_all
from ray_jobs.verdict.report_html import html_report
from ray_jobs.verdict.report_md import markdown_report
from ray_jobs.verdict.scored import scored_rows


def write_report(
    write: Callable[[str, bytes], object], report: Mapping[str, Any], inputs: VerdictInputs
) -> list[str]:
    """Hands each file's name and bytes to `write`, which puts it there whole; returns the names.

    report.json comes last, so that a folder which has it has everything.
    """
    pictures = draw_all(report, scored_rows(inputs, report["metric"]))
    files = {f"{picture.name}.png": picture.png for picture in pictures}
    files["report.md"] = markdown_report(report, pictures).encode("utf-8", "replace")
    files["report.html"] = html_report(report, pictures).encode("utf-8", "replace")
    files["report.json"] = report_json(report)
    for name, data in files.items():
        write(name, data)
    return list(files)


def report_json(report: Mapping[str, Any]) -> bytes:
    """The report as JSON that any reader takes: ASCII only, no NaN."""
    return (json.dumps(report, indent=2, allow_nan=False) + "\n").encode("ascii")
