"""A trial that fails is tried again by Ray Train, and one whose driver is lost by Ray Tune: not each by both.

When its workers have failed as often as they may, the trial is given up for this search: that is noted in its
folder, so that Tune's retries, which cannot tell the two apart, end at once. Another command tries again.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ray_jobs.errors import StageFailed
from ray_jobs.runs import dump_json
from ray_jobs.stages.causes import first_cause
from ray_jobs.stages.group_notes import leave, left

NOTE = "given-up.json"


@contextmanager
def attempt(group: str, search: str) -> Iterator[None]:
    """Raises StageFailed when the trial was given up in the same search; `group`: its folder or URI."""
    import ray.train

    if reason := _why_given_up(group, search):
        raise StageFailed(reason)
    try:
        yield
    except ray.train.WorkerGroupError as error:
        note = {"search": search, "reason": first_cause(str(error))}
        with suppress(OSError):  # without it, Tune tries again as often as it may
            leave(group, NOTE, dump_json(note))
        raise


def _why_given_up(group: str, search: str) -> str | None:
    try:
        note = json.loads(left(group, NOTE) or b"{}")
    except (OSError, ValueError):
        return None
    return str(note["reason"]) if note.get("search") == search else None
