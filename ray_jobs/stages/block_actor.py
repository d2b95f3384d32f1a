"""The actor that takes blocks of rows through an engine, and outlives a row that kills it.

Each block is entered in a ledger, outside of the process, before it is begun. A block that is begun anew was
being worked on when its process died. Its rows are then processed one at a time, with nothing else in the
process: a row on which it then dies three times is quarantined. So a poison row costs four deaths, and an
actor that was killed for other reasons costs no row: a row under suspicion comes last in its block, so that
it is not what every new process begins with.
"""

import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ray_jobs.errors import StageFailed
from ray_jobs.stages.blocks import Range, RowJob, blocks_at
from ray_jobs.stages.signs import tell
from ray_jobs.stages.spent import resident_bytes
from ray_jobs.tables import RowFile, table_of
from serving.storage.node_cache import local_copy

DEATHS_ALONE = 3
"""Times that a process dies on a row alone before the row is quarantined."""
STARTS = 5
"""Times that an actor's process may die while its engine starts."""
ROW_ERRORS = (ValueError, TypeError, LookupError, RecursionError)
"""What one row's content may raise; anything else is the engine's or the machine's, and fails the stage."""
TOKENS = ("answer_tokens", "prompt_tokens", "cached_tokens")
"""The engine's totals whose growth is told with every block."""
SUMMARY = dict.fromkeys(("rows", "results", "failed", "memory_bytes", *TOKENS), "int64")
"""What is told of every block. `failed`: of the results, those that are none, see `RowJob.num_failed`;
`memory_bytes`: what the process held at its end."""


class Ledger:
    """Counts what was begun and not ended, for processes that may die of it, and holds what they say.

    A Ray actor.
    """

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()
        self._said: dict[str, Mapping[str, int]] = {}

    def begin(self, what: str) -> int:
        """How often it was begun before."""
        self._begun[what] += 1
        return self._begun[what] - 1

    def end(self, what: str) -> None:
        self._begun.pop(what, None)

    def begun(self, whats: Sequence[str]) -> list[int]:
        """How often each was begun and not ended."""
        return [self._begun[what] for what in whats]

    def say(self, who: str, totals: Mapping[str, int]) -> None:
        """The latest totals of one process."""
        self._said[who] = totals

    def said(self) -> dict[str, int]:
        """The sums of all."""
        return dict(sum((Counter(totals) for totals in self._said.values()), Counter()))


class Room:
    """Work in company, or alone: who asks to be alone waits for the others, and no new ones come in."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._asking = 0

    @contextmanager
    def entered(self, *, alone: bool) -> Iterator[None]:
        with self._changed:
            self._asking += alone
            self._changed.wait_for(lambda: (self._inside if alone else self._asking) == 0)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._asking -= alone
                self._changed.notify_all()


class Growth:
    """What a process's engine has computed since the last time that one of its threads asked."""

    def __init__(self, work: Any) -> None:
        """`work`: an actor of a RowJob. One that has an engine of this process names it `engine`."""
        self._engine = getattr(work, "engine", None)
        self._told = dict.fromkeys(TOKENS, 0)
        self._lock = threading.Lock()

    def totals(self) -> dict[str, int]:
        if self._engine is None:
            return dict.fromkeys(TOKENS, 0)
        metrics = self._engine.metrics()
        return {name: getattr(metrics, name) for name in TOKENS}

    def state(self) -> dict[str, int]:
        """The totals, and `unpinned`: 1 where the engine has no cores of its own."""
        return {**self.totals(), "unpinned": int(self._engine is not None and not self._engine.settings.pin)}

    def take(self) -> dict[str, int]:
        with self._lock:
            now, before = self.totals(), self._told
            self._told = now
        return {name: now[name] - before[name] for name in TOKENS}


class BlockActor:
    """Called by Ray Data with tables of lists of ranges; writes each range's results as a block."""

    def __init__(self, job: RowJob, source: str, folder: str, ledger: Any) -> None:
        import ray

        self._job = job
        self._ledger = ledger
        self._rows = RowFile(local_copy(source))
        self._blocks = blocks_at(folder)
        self._room = Room()
        name = f"engine {ray.get_runtime_context().get_actor_id()}"
        if self._begin(name) >= STARTS:
            raise StageFailed(f"the engine's process died {STARTS} times while it started")
        self._work = job.actor(job.spec)
        self._growth = Growth(self._work)
        self._end(name)
        tell(ledger, f"{name} {os.getpid()}", self._growth.state)

    def __call__(self, ranges: Any) -> Any:
        blocks = [block for row in ranges.to_pylist() for block in row["ranges"]]
        return table_of([self._block((start, stop)) for start, stop in blocks], SUMMARY)

    def _block(self, block: Range) -> dict[str, int]:
        """Answers one range of rows, unless another attempt has."""
        rows = self._rows.rows(*block)
        failed = None
        if not self._blocks.has(block):
            if not self._begin(f"rows {block}"):
                failed = self._in_company(block, rows)
            if failed is None:
                failed = sum(self._row(block[0] + at, rows[at]) for at in self._least_suspect(block))
            self._end(f"rows {block}")
        results = sum(len(self._job.keys_of(row)) for row in rows)
        told = {"rows": len(rows), "results": results, "failed": failed or 0}
        return {**told, "memory_bytes": resident_bytes(), **self._growth.take()}

    def _in_company(self, block: Range, rows: Sequence[Mapping[str, Any]]) -> int | None:
        """Processes the rows together, and counts failed results; None when a row raised an error."""
        with self._room.entered(alone=False):
            try:
                results = self._process(rows)
            except ROW_ERRORS:
                return None
        return self._write(block, results)

    def _least_suspect(self, block: Range) -> list[int]:
        """The places of the block's rows, those on which no process died first."""
        import ray

        deaths = ray.get(self._ledger.begun.remote([f"row {number}" for number in range(*block)]))
        return sorted(range(len(deaths)), key=deaths.__getitem__)

    def _row(self, number: int, row: Mapping[str, Any]) -> int:
        """Processes one row alone, or quarantines it, and counts failed results."""
        block = (number, number + 1)
        if self._blocks.has(block):
            return 0
        with self._room.entered(alone=True):
            died, error = self._begin(f"row {number}"), None
            if died >= DEATHS_ALONE:
                error = f"engine_died: the engine's process died {died} times on this row alone"
            else:
                try:
                    results: Sequence[Mapping[str, Any]] = self._process([row])
                except ROW_ERRORS as raised:
                    error = f"row_error: {type(raised).__name__}: {raised}"[:500]
            if error is not None:
                results = self._job.quarantined(row, error)
            failed = self._write(block, results)
            self._end(f"row {number}")
        return failed

    def _process(self, rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        results = self._work(table_of(rows, self._job.columns_in)).to_pylist()
        return self._job.in_order(rows, results)

    def _write(self, block: Range, results: Sequence[Mapping[str, Any]]) -> int:
        self._blocks.write(block, results, self._job.columns_out)
        return self._job.num_failed(results)

    def _begin(self, what: str) -> int:
        import ray

        before: int = ray.get(self._ledger.begin.remote(what))
        return before

    def _end(self, what: str) -> None:
        self._ledger.end.remote(what)
