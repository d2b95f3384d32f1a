"""Rows through a Ray Data pool of engine actors, with what is finished kept as it arrives."""

import logging
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.config import EngineActors
from ray_jobs.errors import StageFailed
from ray_jobs.logs import Progress
from ray_jobs.stages import cluster
from ray_jobs.tables import read_parts, schema, write_rows

log = logging.getLogger(__name__)

BLOCKS_IN_FLIGHT = 4
"""Blocks that one actor works on at once, so that its slots stay full while a block's last rows finish."""


Key = tuple[str, ...]


@dataclass(frozen=True)
class RowJob:
    """What a pool of actors does with rows.

    `actor(spec)` is called with Arrow tables of `columns_in` and gives tables of `columns_out`, whose rows
    are told apart by their `key` columns; `keys_of` names the keys that one row leads to.
    """

    stage: str
    what: str
    actor: Callable[..., Any]
    spec: dict[str, Any]
    columns_in: Mapping[str, str]
    columns_out: Mapping[str, str]
    key: tuple[str, ...]
    keys_of: Callable[[Mapping[str, Any]], list[Key]]

    def key_of(self, result: Mapping[str, Any]) -> Key:
        return tuple(result[name] for name in self.key)


def compute_rows(
    job: RowJob, rows: Sequence[Mapping[str, Any]], unfinished: Path, pool: EngineActors
) -> list[dict[str, Any]]:
    """One result for every key of every row, in the order of the rows.

    Results are kept in `unfinished` as they come, and what is there already is not computed again. The
    caller publishes the results and removes the folder. Raises StageFailed when results are missing.
    """
    results = {job.key_of(result): result for result in read_parts(unfinished)}
    pending = [row for row in rows if any(key not in results for key in job.keys_of(row))]
    if results:
        log.info("%-8s takes up %d %s; %d rows are left", job.stage, len(results), job.what, len(pending))
    progress = Progress(log, job.stage, job.what, sum(len(job.keys_of(row)) for row in pending))
    for block in through_actors(job, pending, pool):
        write_rows(unfinished / f"{uuid.uuid4().hex}.parquet", block, job.columns_out)
        results.update((job.key_of(result), result) for result in block)
        progress.add(len(block))
    keys = [key for row in rows for key in job.keys_of(row)]
    missing = [key for key in keys if key not in results]
    if missing:
        raise StageFailed(f"{job.stage}: {len(missing)} of {len(keys)} {job.what} are missing: {missing[:3]}")
    return [results[key] for key in keys]


def through_actors(
    job: RowJob, rows: Sequence[Mapping[str, Any]], pool: EngineActors
) -> Iterator[list[dict[str, Any]]]:
    """The results, a block at a time, in the order in which they are finished."""
    if not rows:
        return
    import pyarrow as pa
    import ray.data

    arrow = schema(job.columns_in)
    size = pool.rows_per_block
    tables = [
        pa.Table.from_pylist(list(rows[at : at + size]), schema=arrow) for at in range(0, len(rows), size)
    ]
    cores = pool.settings.cores
    actors = min(pool.actors or max(1, cluster.num_cpus() // cores), len(tables))
    log.info("%-8s %d engine(s) of %d core(s), %d rows", job.stage, actors, cores, len(rows))
    results = map_batches(job, ray.data.from_arrow(tables), actors, cores)
    for table in results.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield table.to_pylist()


def map_batches(job: RowJob, rows: Any, actors: int, cores: int) -> Any:
    """The Ray Data step: a fixed pool of actors, each with its cores."""
    import ray.data

    # By default Ray Data restarts and retries for ever: a row that kills its actor would never end. The
    # limits have no named parameter, and giving them the old way warns of a release above our pin.
    limits = {"max_restarts": 2, "max_task_retries": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return rows.map_batches(
            job.actor,
            fn_constructor_kwargs={"spec": job.spec},
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=cores,
            compute=ray.data.ActorPoolStrategy(
                size=actors,
                max_tasks_in_flight_per_actor=BLOCKS_IN_FLIGHT,
                max_concurrent_calls_per_actor=BLOCKS_IN_FLIGHT,
                enable_true_multi_threading=True,
            ),
            **limits,
        )
