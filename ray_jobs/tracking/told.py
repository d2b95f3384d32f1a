"""What a tracker was told of a run, so that nothing is told twice.

It stands in `tracking.json` of the run folder, a section for each tracker: a command that is run again adds
what is new: trials after the search, figures and report after the verdict, the model after a promotion.
"""

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from ray_jobs.runs import RunFolder, StageState, json_sha256

NOTES = "tracking.json"
STAGES = ("tune", "verdict", "promote")
"""Stages whose results trackers are told."""
NO_BEARING = (
    "storage", "registry", "tracking.", "workers.", "search.max_concurrent_trials", "search.max_failures",
    "engine.actors", "engine.ahead", "engine.rows_per_block", "judge.gpus", "judge.timeout_s",
    "judge.openai.api_key_env", "judge.openai.max_concurrent_requests", "judge.openai.max_retries",
)  # fmt: skip
"""Settings that no result depends on, by how their names begin."""


class Told:
    """One tracker's section. `place` says which store: another one was told nothing yet.

    `settings` are the run's now: what comes of others does not belong under those that a tracker has.
    """

    def __init__(self, folder: RunFolder, tracker: str, place: str, settings: Mapping[str, str]) -> None:
        self._folder, self._tracker, self._place = folder, tracker, place
        self._settings = json_sha256(
            {name: value for name, value in settings.items() if not name.startswith(NO_BEARING)}
        )
        self.states: Mapping[str, StageState] = folder.states()
        known = self._all().get(tracker)
        ours = known if isinstance(known, dict) and known.get("place") == place else {}
        self._notes: dict[str, Any] = {**ours, "place": place}

    @property
    def run_id(self) -> str | None:
        """The run in the tracker that stands for this one."""
        found = self._notes.get("run_id")
        return found if isinstance(found, str) else None

    @property
    def failed(self) -> bool:
        """Whether a stage of the run has failed."""
        return any(state.status == "failed" for state in self.states.values())

    @property
    def key(self) -> str:
        """Names the run before the tracker has one: who was cut off while it was made finds it again."""
        if "key" not in self._notes:
            self._keep(key=secrets.token_hex(8))
        return f"{self._notes['key']}-{self._settings[:8]}"

    def begin(self, run_id: str) -> None:
        self._keep(run_id=run_id, settings=self._settings)

    def superseded(self) -> str | None:
        """The tracker's run, if it has other settings and there are new results: another must begin."""
        old, known = self.run_id, self._notes.get("settings")
        has_results = any(self.is_new(stage) for stage in STAGES if stage != "promote")
        if old is None or known in (None, self._settings) or not has_results:
            return None
        self._notes = {"place": self._place}
        return old

    @property
    def has_news(self) -> bool:
        return any(self.is_new(stage) for stage in STAGES)

    def is_new(self, stage: str) -> bool:
        """Whether a stage is done, and this tracker does not know its result."""
        state = self.states.get(stage)
        told = self._notes.get("told", {}).get(stage)
        return state is not None and state.status == "done" and state.inputs_sha256 != told

    def once(self, stage: str, tell: Callable[[], None]) -> None:
        """Tells the result of a stage where it is new, and notes that it was."""
        if self.is_new(stage):
            tell()
            self._keep(told={**self._notes.get("told", {}), stage: self.states[stage].inputs_sha256})

    @property
    def ended_otherwise(self) -> bool:
        """Whether the tracker was told of another end than the run has now."""
        return self._notes.get("failed") is not self.failed

    def end(self) -> None:
        self._keep(failed=self.failed)

    def _all(self) -> dict[str, Any]:
        if not self._folder.path(NOTES).is_file():
            return {}
        notes = self._folder.read_json(NOTES)
        return notes if isinstance(notes, dict) else {}

    def _keep(self, **changes: Any) -> None:
        self._notes = {**self._notes, **changes}
        self._folder.write_json(NOTES, {**self._all(), self._tracker: self._notes})
