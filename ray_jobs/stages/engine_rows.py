"""Rows through a Ray Data pool of engine actors, with what is finished kept as it arrives.

Ray Data schedules ranges of rows; the actors read them from a file and write what they finished to the run
folder. So the driver holds no rows, and a killed actor, driver or node loses the blocks that were in work.
(Ray Data's own checkpoint keeps whole write tasks, which may be all rows, and hangs on restore when the
engines have all CPUs; ray 2.60.)
"""

import gc
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_jobs.config import EngineActors
from ray_jobs.errors import RunConflict, StageFailed
from ray_jobs.logs import Progress
from ray_jobs.stages import cluster
from ray_jobs.stages.block_actor import BlockActor, Ledger
from ray_jobs.stages.blocks import Range, RowJob, blocks_at, cut
from ray_jobs.stages.causes import first_cause
from ray_jobs.stages.signs import EVERY_S, listening
from ray_jobs.stages.spent import Spent
from ray_jobs.tables import RowFile, same_rows, write_tables
from serving.storage.mirror import discard, publish, shared

__all__ = ["RowJob", "compute_file", "compute_tables"]

log = logging.getLogger(__name__)

BLOCKS_IN_FLIGHT = 4
"""Blocks that one actor works on at once, so that its slots stay full while a block's last rows finish."""
TASKS_PER_SLOT = 8
"""Ray tasks for each block that can be worked on at once: enough to spread work evenly to the end."""
BLOCKS_PER_TASK = 64
DAMAGE_ROUNDS = 3
"""Times that damaged blocks are computed anew."""


def compute_tables(job: RowJob, tables: Iterable[Any], unfinished: Path, pool: EngineActors) -> Path:
    """The file of one result for every key of every row of the tables, in their order.

    The file is in `unfinished`, where results are kept as they come, and what is there already of the same
    rows is not computed again. The caller publishes the results and removes the folder. Memory does not grow
    with the number of rows. Raises StageFailed when results are missing.
    """
    source, output = unfinished / "input.parquet", unfinished / "output.parquet"
    wanted = unfinished.with_name(f"{unfinished.name}.input.parquet")
    write_tables(wanted, tables, job.columns_in)
    if not (source.exists() and same_rows(source, wanted)):
        discard(unfinished)
        unfinished.mkdir(parents=True, exist_ok=True)
        wanted.replace(source)
        publish(source)
    wanted.unlink(missing_ok=True)
    compute_file(job, source, output, unfinished / "blocks", pool)
    return output


def compute_file(
    job: RowJob,
    source: Path,
    output: Path,
    unfinished: Path,
    pool: EngineActors,
    on_begun: Callable[[], None] | None = None,
) -> Spent | None:
    """Results for every key of every row of the file `source`, in the order of the rows, into `output`.

    Memory does not grow with the number of rows. Blocks of results are kept in `unfinished`; the caller
    removes the folder. `on_begun` is called when engines are at work, maybe several times, from any thread.
    Returns what it took; None where all was finished before. Raises StageFailed when results are missing.
    """
    rows = RowFile(source)
    num_rows = len(rows)
    each = len(job.keys_of(rows.rows(0, 1)[0])) if num_rows else 0
    blocks = blocks_at(shared(unfinished))
    if kept := sum(stop - start for start, stop in blocks.done()):
        log.info("%-8s takes up %d of %d rows that were finished before", job.stage, kept, num_rows)
    first = None
    for _ in range(DAMAGE_ROUNDS):
        gaps = blocks.missing(num_rows)
        spent = through_actors(job, source, unfinished, gaps, pool, on_begun, results_per_row=each)
        first = first or spent
        if missing := blocks.missing(num_rows):
            raise StageFailed(f"{job.stage}: {job.what} of rows {missing[:3]} are missing")
        failed = Failed(job)
        try:
            write_tables(output, failed.counting(blocks.tables()), job.columns_out)
        except RunConflict as error:
            log.warning("%-8s %s; computing it again", job.stage, error)
        else:
            failed.tell(num_rows * each)
            return first
    raise StageFailed(f"{job.stage}: {unfinished}: blocks are damaged again and again")


class Failed:
    """Results that are none: how many by the code of each reason, and what was said of the first one."""

    def __init__(self, job: RowJob) -> None:
        self._job = job
        self._codes: Counter[str] = Counter()
        self._example: str | None = None

    def counting(self, tables: Iterable[Any]) -> Iterator[Any]:
        """The same tables, counted; a code ends at the colon."""
        for table in tables:
            for name in sorted({"error", "failure"} & set(table.column_names)):
                codes = table[name]
                self._codes.update(text.partition(":")[0] for text in codes.drop_null().to_pylist())
                if self._example is None and codes.null_count < len(codes):
                    said = map(self._job.why, table.filter(codes.is_valid()).to_pylist())
                    self._example = next(filter(None, said), None)
            yield table

    def tell(self, num_results: int) -> None:
        if self._codes:
            found = ", ".join(f"{count} {code}" for code, count in self._codes.most_common())
            example = f"; for example: {' '.join(self._example.split())[:300]}" if self._example else ""
            what = f"{self._codes.total()} of {num_results} {self._job.what}"
            log.warning("%-8s %s failed: %s%s", self._job.stage, what, found, example)


def through_actors(
    job: RowJob,
    source: Path,
    folder: Path,
    gaps: Sequence[Range],
    pool: EngineActors,
    on_begun: Callable[[], None] | None,
    *,
    results_per_row: int,
) -> Spent | None:
    """Has the missing ranges computed, and logs how far it is. Returns what it took; None for no range."""
    ranges = cut(gaps, pool.rows_per_block)
    if not ranges:
        return None
    cores = pool.settings.cores
    actors = min(num_actors(job, pool), len(ranges))
    num_rows = sum(stop - start for start, stop in ranges)
    gpus = f" and {job.gpus:g} GPU(s)" if job.gpus else ""
    log.info("%-8s %d engine(s) of %d core(s)%s, %d rows", job.stage, actors, cores, gpus, num_rows)
    progress = Progress(log, job.stage, job.what, num_rows * results_per_row)
    totals: Counter[str] = Counter()
    memory = 0

    shared_cores = WarnOnce(job.stage, enabled=pool.settings.pin)

    def heard(said: Mapping[str, int]) -> None:
        shared_cores.tell(said.get("unpinned", 0))
        if not said.keys() - {"unpinned"}:
            return
        if on_begun is not None:
            on_begun()
        progress.begin(ago_s=EVERY_S)
        progress.alive(note_of(Counter(said) + Counter(failed=totals["failed"]), progress.working_s))

    for done in map_ranges(job, source, folder, tasks(ranges, actors), actors, cores, heard):
        memory = max(memory, done["memory_bytes"])
        totals.update(done)
        progress.add(done["results"], note_of(totals, progress.working_s))
    return Spent(progress.elapsed_s, actors, cores, totals["answer_tokens"], memory or None)


class WarnOnce:
    """Says once how many engines found no cores of their own."""

    def __init__(self, stage: str, *, enabled: bool) -> None:
        self._stage, self._due = stage, enabled

    def tell(self, num_engines: int) -> None:
        if num_engines and self._due:
            self._due = False
            log.warning(
                "%-8s %d engine(s) found no cores of their own and share them: an endpoint or another run "
                "owns them, or Ray counts hyper-threads as CPUs",
                self._stage,
                num_engines,
            )


def num_actors(job: RowJob, pool: EngineActors) -> int:
    """As the config says, else as many as the cluster holds; of those with GPUs no more than that.

    Raises StageFailed where it has not the GPUs of one.
    """
    if not job.gpus:
        return pool.actors or max(1, cluster.engine_cpus() // pool.settings.cores)
    there = cluster.trial_capacity("GPU")
    hold = int(there) * int(1 / job.gpus) if job.gpus < 1 else int(there / job.gpus)
    if hold == 0:
        raise StageFailed(f"{job.stage}: an engine wants {job.gpus:g} GPU(s), the cluster has {there:g}")
    return min(pool.actors or hold, hold)


def note_of(totals: Mapping[str, int], working_s: float) -> str:
    """What the engines have done so far, for the progress line."""
    parts = []
    if totals["answer_tokens"]:
        parts.append(f"{totals['answer_tokens'] / working_s:,.0f} tokens/s")
    if totals["prompt_tokens"] and totals["cached_tokens"]:
        parts.append(f"{totals['cached_tokens'] / totals['prompt_tokens']:.0%} of prompts from the cache")
    if totals["failed"]:
        parts.append(f"{totals['failed']} failed")
    return " · ".join(parts)


def tasks(ranges: Sequence[Range], actors: int) -> list[list[Range]]:
    """The ranges in Ray tasks of one or more each."""
    size = len(ranges) // (actors * BLOCKS_IN_FLIGHT * TASKS_PER_SLOT)
    size = max(1, min(BLOCKS_PER_TASK, size))
    return [list(ranges[at : at + size]) for at in range(0, len(ranges), size)]


def map_ranges(
    job: RowJob,
    source: Path,
    folder: Path,
    ranges: Sequence[Sequence[Range]],
    actors: int,
    cores: int,
    heard: Callable[[Mapping[str, int]], None],
) -> Iterator[dict[str, int]]:
    """Summaries as tasks end; `heard` is told every few seconds what engines have read and written.

    Raises StageFailed with the first cause of what failed on the cluster."""
    import ray

    ledger = ray.remote(Ledger).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    given = {"job": job, "source": shared(source), "folder": shared(folder), "ledger": ledger}
    try:
        with listening(ledger, heard):
            yield from data_step(job, given, ranges, actors, cores)
        return
    except ray.exceptions.RayError as error:
        log.debug("failed on the cluster", exc_info=error)
        reason = first_cause(str(error))
    finally:
        ray.kill(ledger)
    # The error's frames held the actors, and with them their cores.
    gc.collect()
    raise StageFailed(f"{job.stage}: {reason}")


def data_step(
    job: RowJob, given: dict[str, Any], ranges: Sequence[Sequence[Range]], actors: int, cores: int
) -> Iterator[dict[str, int]]:
    """The Ray Data step: a fixed pool of actors, each with its cores.

    Ray Data restarts dead actors and repeats their tasks without end; the ledger is what ends it.
    """
    import ray.data

    items = [{"ranges": [list(block) for block in task]} for task in ranges]
    results = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        BlockActor,
        fn_constructor_kwargs=given,
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=cores,
        num_gpus=job.gpus or None,
        resources={} if job.gpus else cluster.engine_resources(cores),
        compute=ray.data.ActorPoolStrategy(
            size=actors,
            max_tasks_in_flight_per_actor=BLOCKS_IN_FLIGHT,
            max_concurrent_calls_per_actor=BLOCKS_IN_FLIGHT,
            enable_true_multi_threading=True,
        ),
    )
    for table in results.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from table.to_pylist()
