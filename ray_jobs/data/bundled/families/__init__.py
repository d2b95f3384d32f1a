"""Every family of tasks, by name. The `source` of a row is PREFIX + name."""

from ray_jobs.data.bundled.families import (
    bullets,
    comparison,
    counting,
    csv_line,
    dates,
    form_letter,
    json_object,
    lookup,
    lower_case,
    mood,
    position,
    recall,
    redaction,
    sorting,
    units,
    upper_case,
)
from ray_jobs.data.bundled.task import Family

PREFIX = "orpo-tasks/"
FAMILIES: dict[str, Family] = {
    "bullets": bullets,
    "comparison": comparison,
    "counting": counting,
    "csv": csv_line,
    "dates": dates,
    "form_letter": form_letter,
    "json": json_object,
    "lookup": lookup,
    "lower_case": lower_case,
    "mood": mood,
    "position": position,
    "recall": recall,
    "redaction": redaction,
    "sorting": sorting,
    "units": units,
    "upper_case": upper_case,
}
