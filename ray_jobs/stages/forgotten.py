"""Trials that a search has forgotten are taken up again by those that it makes in their place.

Ray Tune (2.60) writes a search's state down every ten seconds. A driver that is killed before that, or while
it writes, leaves trials of which the restored search knows nothing: it makes the same ones again under new
IDs, and would train them anew. So each trial leaves its settings in its folder, and a new one with the same
settings begins with the folder that an unknown one has left. Not in object stores, where folders cannot be
renamed at once.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ray_jobs.runs import dump_json
from ray_jobs.stages.checkpoints import STATES
from ray_jobs.stages.group_notes import leave

log = logging.getLogger(__name__)

NOTE = "settings.json"

Forgotten = Mapping[str, Sequence[str]]
"""Names of folders by the digest of their trials' settings."""


def forgotten_trials(trials: Path, experiment: Path) -> dict[str, list[str]]:
    """The folders in `trials` whose trials are not in the newest state of the search in `experiment`."""
    known = _known(experiment)
    found: dict[str, list[str]] = {}
    for note in sorted(trials.glob(f"*/{NOTE}")):
        with suppress(OSError, ValueError, LookupError):
            if note.parent.name not in known:
                found.setdefault(json.loads(note.read_bytes())["digest"], []).append(note.parent.name)
    return found


def _known(experiment: Path) -> set[str]:
    """IDs of the trials that a restored search knows."""
    newest = max(experiment.glob(STATES), key=lambda state: state.name, default=None)
    if newest is None:
        return set()
    trials = json.loads(newest.read_bytes())["trial_data"]
    return {str(json.loads(state)["trial_id"]) for state, _ in trials}


def take_up(group: Path, settings: str, forgotten: Forgotten) -> None:
    """Makes a folder that was left by a trial of these settings (JSON) the new trial's own, if there is one.

    Of several trials with equal settings each gets another folder: renaming one is atomic.
    """
    digest = hashlib.sha256(settings.encode()).hexdigest()
    for name in () if group.exists() else forgotten.get(digest, ()):
        try:
            os.rename(group.parent / name, group)
        except OSError:
            continue
        log.info("trial %s goes on from what %s has left", group.name, name)
        return
    leave(str(group), NOTE, dump_json({"digest": digest}))
