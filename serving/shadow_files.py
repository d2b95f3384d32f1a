"""The stored answers of shadow traffic: `shadow/*.jsonl` in the registry, a file for each process."""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 256 << 20


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
