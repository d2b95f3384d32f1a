"""A second model answers what the champion is asked, unseen, for judges to compare.

The rows go to `shadow/*.jsonl` in the registry: prompt, champion's answer, other model's answer. They hold
what users wrote, which nothing else here does; so this is off unless it is configured.

    python -m serving.shadow RUN_DIR --trust RUN_DIR    a run folder of these answers

which `python -m ray_jobs.judge CONFIG --set name=…` then judges like a run's own. `--trust`: the run whose
pairs of known answers the judge is tested on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from serving.affinity import position
from serving.calls import Call
from serving.engine.types import Result
from serving.files import write_whole

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 256 << 20
_ROLES = frozenset({"system", "user", "assistant"})


class Shadow(BaseModel):
    """Which calls are answered a second time. One at a time per replica, and only while nobody waits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[str, Field(min_length=1)]
    """A name out of /v1/models."""
    share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
    """Of the users."""

    def takes(self, call: Call) -> bool:
        """Plain chats with the champion alone: what the judges can read."""
        plain = call.messages is not None and all(turn["role"] in _ROLES for turn in call.messages)
        free = not call.tools and call.sampling.json_schema is None and call.num_choices == 1
        return plain and free and call.model in (None, "champion") and position(call) < self.share


def row_of(call: Call, answers: Mapping[str, tuple[str, Result]]) -> dict[str, Any]:
    """A line of the file. `answers`: of `champion` and `shadow`, each with the model's sha256."""
    messages = [{"role": turn["role"], "content": turn["content"]} for turn in call.messages or ()]
    prompt_sha256 = _prompt_sha256(messages)
    return {
        "id": call.id,
        "source": "shadow",
        "messages": messages,
        "reference": None,
        "asked_s": round(time.time(), 3),
        "answers": {
            name: _answer(call.id, prompt_sha256, sha256, result)
            for name, (sha256, result) in answers.items()
        },
    }


def _prompt_sha256(messages: Iterable[Mapping[str, str]]) -> str:
    """As the pipeline hashes prompts: every text with its length before it."""
    digest = hashlib.sha256()
    for data in (turn[key].encode() for turn in messages for key in ("role", "content")):
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _answer(row_id: str, prompt_sha256: str, model_sha256: str, result: Result) -> dict[str, Any]:
    failed = result.finish_reason not in ("stop", "length")
    return {
        "id": row_id,
        "source": "shadow",
        "prompt_sha256": prompt_sha256,
        "model_sha256": model_sha256,
        "answer": None if failed else result.text,
        "num_prompt_tokens": result.num_prompt_tokens,
        "num_cached_tokens": result.num_cached_tokens,
        "num_answer_tokens": result.num_answer_tokens,
        "finish_reason": "error" if failed else result.finish_reason,
        "seconds": round(result.seconds, 4),
        "error": (result.error or result.finish_reason) if failed else None,
    }


def append(registry: Path, row: Mapping[str, Any]) -> None:
    """One line, in a file of this process; nothing once that file is full."""
    folder = registry / "shadow"
    folder.mkdir(exist_ok=True)
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    with (folder / f"{platform.node()}-{os.getpid()}.jsonl").open("ab", buffering=0) as file:
        if file.tell() + len(line) > MAX_FILE_BYTES:
            log.warning("%s is full: no more shadow answers are stored", file.name)
            return
        file.write(line)


# A run folder for the judges.


def rows_of(registry: Path) -> list[dict[str, Any]]:
    """Every stored row, in order of time; a line that a dying process left half is skipped."""
    rows = []
    for path in sorted((registry / "shadow").glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                log.warning("%s: a line is not whole", path)
    return sorted(rows, key=lambda row: row["asked_s"])


def write_run(rows: list[dict[str, Any]], run: Path, trust: Path) -> None:
    """What the judge stage reads: prompts, known pairs, and both answers, the champion's as the base's."""
    (run / "data").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(trust / "data" / "trust.parquet", run / "data" / "trust.parquet")
    prompts = [{key: row[key] for key in ("id", "source", "messages", "reference")} for row in rows]
    _write_parquet(run / "data" / "prompts.parquet", prompts, _PROMPT)
    for folder, name in (("base", "champion"), ("candidate", "shadow")):
        path = run / "answers" / folder / "part-00000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_parquet(path, (row["answers"][name] for row in rows), _ANSWER)


_PROMPT = {"id": "string", "source": "string", "messages": "messages", "reference": "string"}
_ANSWER = {
    "id": "string", "source": "string", "prompt_sha256": "string", "model_sha256": "string",
    "answer": "string", "num_prompt_tokens": "int64", "num_cached_tokens": "int64",
    "num_answer_tokens": "int64", "finish_reason": "string", "seconds": "float64", "error": "string",
}  # fmt: skip


def _write_parquet(path: Path, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    types = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "messages": pa.list_(turn)}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), buffer)
    write_whole(path, buffer.getvalue())


def main(arguments: list[str] | None = None) -> int:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m serving.shadow",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument("--trust", type=Path, required=True, metavar="RUN_DIR")
    parser.add_argument("--registry", type=Path, default=Path(os.environ.get("SERVING_REGISTRY", "registry")))
    options = parser.parse_args(arguments)
    rows = rows_of(options.registry)
    if not rows:
        sys.stderr.write(f"{options.registry}/shadow: no answers are stored there\n")
        return 1
    try:
        write_run(rows, options.run, options.trust)
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{options.run}: {len(rows)} prompts with two answers each\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
