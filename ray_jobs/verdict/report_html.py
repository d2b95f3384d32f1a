"""report.html: one file that needs nothing else, readable on a phone, light or dark.

Everything that a model or a data set wrote is escaped by the template engine; besides, the page's content
policy lets only its own script run, by hash, and loads nothing.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from ray_jobs.verdict.plots import Picture
from ray_jobs.verdict.plots_search import duration
from ray_jobs.verdict.words import HEADLINES, percent, printable, sentence, signed, span, trial_settings

_FOLDER = files("ray_jobs.verdict") / "templates"


def html_report(report: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """The whole page as text."""
    script = (_FOLDER / "report.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _template().render(
        report=readable(report),
        headlines=HEADLINES,
        headline=HEADLINES[report["decision"]],
        pictures={picture.name: replace(picture, alt=printable(picture.alt)) for picture in pictures},
        svg={picture.name: Markup(picture.svg) for picture in pictures},
        style=Markup((_FOLDER / "report.css").read_text("utf-8")),
        script=Markup(script),
        script_sha256=digest,
    )


def readable(value: Any) -> Any:
    """The same plain values with characters that a page cannot hold replaced."""
    if isinstance(value, Mapping):
        return {readable(key): readable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [readable(item) for item in value]
    if isinstance(value, str):
        return printable(value)
    return value


def breakable(name: str) -> Markup:
    """A long name that may be broken after its underscores, and nowhere else if these suffice."""
    return Markup("_<wbr>").join(name.split("_"))


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "signed": signed,
        "span": span,
        "percent": lambda *given: percent(*given).replace(" ", "\u00a0"),
        "sentence": sentence,
        "duration": duration,
        "trial_settings": trial_settings,
        "breakable": breakable,
    }
    return environment.from_string((_FOLDER / "report.html.j2").read_text("utf-8"))
