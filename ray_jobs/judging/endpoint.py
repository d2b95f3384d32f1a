"""What goes wrong at a judge's endpoint: which of it passes, which is one row's, and which is every row's."""

import random
import threading
from typing import Any

from ray_jobs.errors import StageFailed

FIRST_REFUSED = 5
"""Rows that an endpoint refuses before it answers any until it is what is asked of all that it refuses."""
SILENT = 5
"""Rows in a row without an answer in time until it is the endpoint that is at fault, not they."""
LONGEST_WAIT_S = 30.0
"""Of the waits that double, a second at first."""
LONGEST_ASKED_WAIT_S = 120.0
"""More is not waited where an endpoint says when to come back."""

_PASSING = (408, 409, 429)
_FOR_ALL = (401, 402, 403, 404)
_SPENT = "insufficient_quota"


def passes(error: Any) -> bool:
    """Whether an `openai.APIError` may be gone in a while: no connection, too many requests, a server in
    trouble. Not that an answer did not come in time: it may be the row's."""
    import openai

    if (status := _status(error)) is not None:
        return (status in _PASSING or status >= 500) and error.code != _SPENT
    if isinstance(error, openai.APITimeoutError):
        return type(error.__cause__).__name__ == "ConnectTimeout"
    return isinstance(error, openai.APIConnectionError)


def ends_all(error: Any) -> bool:
    """Whether all requests would meet the same `openai.APIError`: a wrong key, no such model, no money."""
    return _status(error) in _FOR_ALL or error.code == _SPENT


def wait_s(error: Any, attempt: int) -> float:
    """Seconds before the next try, as the endpoint asks, else twice as many each time. `attempt`: from 0."""
    asked = getattr(error, "response", None) and error.response.headers.get("retry-after")
    if asked and asked.replace(".", "", 1).isdigit():
        return min(float(asked), LONGEST_ASKED_WAIT_S)
    longest = min(2.0**attempt, LONGEST_WAIT_S)
    return longest * random.uniform(0.5, 1.0)  # requests that failed together do not come back together


def reason_of(error: Exception) -> str:
    """In one line."""
    cause = error.__cause__ if _status(error) is None else None
    text = f"{error} ({cause})" if cause and str(cause) else str(error)
    return " ".join(text.split())[:500]


def _status(error: Any) -> int | None:
    found: int | None = getattr(error, "status_code", None)
    return found


class Health:
    """Whether an endpoint answers at all. Thread-safe; rows are told apart by the IDs of their calls.

    What it raises is raised from nothing: of a worker's errors the first in a chain is what a stage tells.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._has_answered = False
        self._refused: set[str] = set()
        self._silent: set[str] = set()

    def answered(self) -> None:
        with self._lock:
            self._has_answered = True
            self._silent.clear()

    def refused(self, call_id: str, reason: str) -> None:
        """A request that found no favour. Raises StageFailed when it is what is asked of all."""
        with self._lock:
            self._silent.clear()
            if self._has_answered:
                return
            self._refused.add(call_id)
            if len(self._refused) >= FIRST_REFUSED:
                raise self.failure(f"refuses the first {len(self._refused)} requests: {reason}") from None

    def silent(self, call_id: str, reason: str) -> None:
        """A request without an answer in time. Raises StageFailed when no other one has one either."""
        with self._lock:
            self._silent.add(call_id)
            if len(self._silent) >= SILENT:
                raise self.failure(f"{len(self._silent)} requests in a row: {reason}") from None

    def failure(self, what: str) -> StageFailed:
        return StageFailed(f"judge.openai.base_url: {self._address}: {what}")
