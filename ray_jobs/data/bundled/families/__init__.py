"""Every family of tasks, by name. The `source` of a row is PREFIX + name."""

from ray_jobs.data.bundled.families import (
    bullets,
    counting,
    csv_line,
    dates,
    form_letter,
    json_object,
    key_value,
    mood,
    recall,
    sorting,
    units,
)
from ray_jobs.data.bundled.task import Family

PREFIX = "orpo-tasks/"
FAMILIES: dict[str, Family] = {
    "bullets": bullets,
    "counting": counting,
    "csv": csv_line,
    "dates": dates,
    "form_letter": form_letter,
    "json": json_object,
    "key_value": key_value,
    "mood": mood,
    "recall": recall,
    "sorting": sorting,
    "units": units,
}
