"""Trials that a search has forgotten are taken up again by those that it makes in their place.

Ray Tune (2.60) writes a search's state down every ten seconds. A driver that is killed before that, or while
it writes, leaves trials of which the restored search knows nothing: it makes the same ones again under new
IDs, and would train them anew. So each trial leaves its settings in its folder, and a new one starts from the
newest checkpoint that an unknown one of the same settings has left.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatch

from ray_jobs.runs import dump_json
from ray_jobs.stages.checkpoints import STATES, repair_trial, whole_since
from ray_jobs.stages.group_notes import files_in, leave, left

log = logging.getLogger(__name__)

NOTE = "settings.json"

Forgotten = Mapping[str, Sequence[str]]
"""Names of folders by the digest of their trials' settings."""


def forgotten_trials(trials: str, experiment: str) -> dict[str, list[str]]:
    """The folders in `trials` whose trials are not in the newest state of the search in `experiment`.

    Both by path or URI.
    """
    known = _known(experiment)
    notes = sorted(name for name in files_in(trials) if fnmatch(name, f"*/{NOTE}") and name.count("/") == 1)
    found: dict[str, list[str]] = {}
    for note in notes:
        name = note.partition("/")[0]
        with suppress(OSError, ValueError, LookupError):
            if name not in known:
                found.setdefault(json.loads(left(trials, note) or b"")["digest"], []).append(name)
    return found


def _known(experiment: str) -> set[str]:
    """IDs of the trials that a restored search knows."""
    newest = max((name for name in files_in(experiment) if fnmatch(name, STATES)), default=None)
    if newest is None:
        return set()
    trials = json.loads(left(experiment, newest) or b"")["trial_data"]
    return {str(json.loads(state)["trial_id"]) for state, _ in trials}


def taken_up(group: str, settings: str, forgotten: Forgotten, *, alone: bool) -> str | None:
    """Where the checkpoint lies that a trial of these settings (JSON) starts from, by path or URI.

    None where no trial of the same has left any. `group`: the new trial's folder, which notes the settings.
    `alone`: whether its group has one worker.
    """
    digest = hashlib.sha256(settings.encode()).hexdigest()
    leave(group, NOTE, dump_json({"digest": digest}))
    trials, _, own = group.rpartition("/")
    found = []
    for name in forgotten.get(digest, ()):
        if name != own and (checkpoint := _newest(f"{trials}/{name}", alone)):
            found.append((checkpoint, name))
    if not found:
        return None
    checkpoint, name = max(found)
    log.info("trial %s goes on from what %s has left", own, name)
    return f"{trials}/{name}/{checkpoint}"


def _newest(trial: str, alone: bool) -> str | None:
    """The newest whole checkpoint of a trial's folder."""
    listed = repair_trial(trial)
    return listed or whole_since(trial, [], alone=alone)
