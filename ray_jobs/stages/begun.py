"""Work of a stage that was begun before its turn, in a folder that says from which inputs.

    ahead/                              a run folder to those who work ahead
      models/base/…, models/inputs.json
      unfinished/answers-<digest>/      blocks; the file `begun` tells that somebody works here
      unfinished/judgements-<digest>/rows/

A stage takes up what was made from its own inputs, and passes over the rest.
"""

from collections.abc import Mapping
from pathlib import Path

from ray_jobs.runs import RunFolder, json_sha256
from serving.storage.mirror import discard

AHEAD = "ahead"
MARK = "begun"
INPUTS = "models/inputs.json"


def ahead_of(folder: RunFolder) -> RunFolder:
    """The folder of work ahead, as a run of its own."""
    return RunFolder(folder.path(AHEAD))


def rows_of(folder: RunFolder, what: str, inputs: Mapping[str, str]) -> Path:
    """Where the finished rows of `what`, made from these inputs, are kept."""
    return folder.path(AHEAD, "unfinished", f"{what}-{json_sha256(dict(inputs))[:16]}")


def begin_rows(folder: RunFolder, what: str, inputs: Mapping[str, str]) -> Path:
    rows = rows_of(folder, what, inputs)
    folder.write((rows / MARK).relative_to(folder.root).as_posix(), b"")
    return rows


def begun_rows(folder: RunFolder, what: str, inputs: Mapping[str, str]) -> Path | None:
    """None where nobody has begun them."""
    rows = rows_of(folder, what, inputs)
    return rows if (rows / MARK).is_file() else None


def forget_ahead(folder: RunFolder) -> None:
    discard(folder.path(AHEAD))
