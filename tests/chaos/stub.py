"""Stubs of the parts that compute, which do what a test asks of them: to be slow, to count, or to die."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray_jobs.config import EngineActors
from ray_jobs.stages.block_actor import TOKENS
from ray_jobs.stages.blocks import RowJob
from ray_jobs.stages.engine_rows import compute_tables
from ray_jobs.tables import read_rows, table_of
from serving.engine.settings import EngineSettings

COLUMNS_IN = {"id": "string", "text": "string"}
COLUMNS_OUT = {"id": "string", "answer": "string", "error": "string"}


class EchoActor:
    """Answers a row with its text in upper case; some texts make it die, raise or wait.

    `spec`: `log` (folder; a file for each row that was begun), `wait_s` (seconds a row takes), `tokens` (what
    its engine has written by then).
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        if "tokens" in spec:
            metrics = SimpleNamespace(**dict.fromkeys(TOKENS, spec["tokens"]))
            self.engine = SimpleNamespace(metrics=lambda: metrics, settings=EngineSettings())
        if spec.get("dies_at_start"):
            os.abort()

    def __call__(self, table: Any) -> Any:
        time.sleep(self._spec.get("wait_s", 0.0) * len(table))
        return table_of([self._answer(row) for row in table.to_pylist()], COLUMNS_OUT)

    def _answer(self, row: dict[str, Any]) -> dict[str, Any]:
        with (Path(self._spec["log"]) / row["id"]).open("a") as file:
            file.write(f"{os.getpid()}\n")
        match row["text"]:
            case "abort":
                os.abort()
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raise":
                raise ValueError("a row that cannot be read")
        return {"id": row["id"], "answer": row["text"].upper(), "error": None}


class WhichGpu:
    """Answers each row with the GPUs that its process was given."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")

    def __call__(self, table: Any) -> Any:
        rows = [{"id": row["id"], "answer": self._gpus, "error": None} for row in table.to_pylist()]
        return table_of(rows, COLUMNS_OUT)


def echo_job(log: Path, **spec: Any) -> RowJob:
    log.mkdir(parents=True, exist_ok=True)
    return RowJob(
        stage="echo",
        what="answers",
        actor=EchoActor,
        spec={"log": str(log), **spec},
        columns_in=COLUMNS_IN,
        columns_out=COLUMNS_OUT,
        key=("id",),
        keys_of=lambda row: [(row["id"],)],
    )


def compute_rows(
    job: RowJob, rows: Sequence[Mapping[str, Any]], unfinished: Path, pool: EngineActors
) -> list[dict[str, Any]]:
    """`compute_tables` for rows in memory."""
    return read_rows(compute_tables(job, [table_of(rows, job.columns_in)], unfinished, pool))
