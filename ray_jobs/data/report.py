"""What is known of a data set: before reading it, and after."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ray_jobs.data.files import files_of, is_metadata
from ray_jobs.data.loaded import Loaded
from ray_jobs.data.settings import Source
from ray_jobs.data.texts import writable
from ray_jobs.errors import DataError
from ray_jobs.records import Message, Pair, Prompt
from serving.storage.remote import local_path

MAX_ROWS_SHOWN = 20
MAX_BYTES_COUNTED = 64_000_000
_FOR_TESTS = {"test", "validation", "valid", "val", "eval", "dev"}
MAX_TURNS_SHOWN = 4
MAX_CHARACTERS_SHOWN = 200


def describe(source: Source, loaded: Loaded[Any]) -> dict[str, Any]:
    """Counts, lengths in characters and fingerprint, as plain JSON values.

    rows_in = rows_used + rows_quarantined + rows_excluded + rows_sampled_out.
    """
    return {
        "source": source.source,
        "revision": source.revision,
        "config": source.config,
        "rows_in": loaded.num_rows_in,
        "rows_used": len(loaded.rows),
        "rows_quarantined": len(loaded.quarantined),
        "rows_excluded": sum(loaded.excluded.values()),
        "rows_sampled_out": loaded.num_sampled_out,
        "repeated_ids": loaded.num_repeated_ids,
        "prompts_cut_off": loaded.num_cut,
        "quarantined": loaded.reasons,
        "excluded": dict(loaded.excluded),
        "first_quarantined": [
            {"row": bad.row, "reason": bad.reason, "source": bad.source}
            for bad in loaded.quarantined[:MAX_ROWS_SHOWN]
        ],
        "by_source": dict(Counter(row.source for row in loaded.rows).most_common()),
        "characters": {name: spread(lengths) for name, lengths in _lengths(loaded.rows).items()},
        "columns": {
            "used": {writable(name): what for name, what in loaded.used.items()},
            "not_used": [writable(name) for name in loaded.unused],
        },
        "first": _first(loaded.rows),
        "first_problem": loaded.first_problem,
        "fingerprint": loaded.fingerprint,
    }


def _first(rows: Sequence[Pair | Prompt]) -> list[dict[str, str]]:
    """The texts of the first row that is used, as far as they show how it was read."""
    if not rows:
        return []
    row = rows[0]
    turns = [(turn.role, turn.content) for turn in (row.prompt if isinstance(row, Pair) else row.messages)]
    if len(turns) > MAX_TURNS_SHOWN:
        left_out = len(turns) - MAX_TURNS_SHOWN
        turns = [turns[0], ("between", f"{left_out} more turns"), *turns[-MAX_TURNS_SHOWN + 1 :]]
    answers = [("chosen", row.chosen), ("rejected", row.rejected)] if isinstance(row, Pair) else []
    if isinstance(row, Prompt) and row.reference is not None:
        answers = [("reference", row.reference)]
    return [{"role": role, "text": text[:MAX_CHARACTERS_SHOWN]} for role, text in (*turns, *answers)]


def column_line(part: Mapping[str, Any]) -> str:
    """What a data set's columns were read as; `part` is what `describe` tells of it."""
    used, unused = part["columns"]["used"], part["columns"]["not_used"]
    as_what = ", ".join(name if name == what else f"{name} -> {what}" for name, what in used.items())
    line = f"columns used: {as_what or 'none'}" + (f"; not used: {', '.join(unused)}" if unused else "")
    return _printable(line)


def first_lines(part: Mapping[str, Any]) -> list[str]:
    """The first row that is used, a line a text; `part` is what `describe` tells of it."""
    texts = ((one["role"], json.dumps(one["text"], ensure_ascii=False)) for one in part["first"])
    return [_printable(f"{role}: {text}") for role, text in texts]


def _printable(text: str) -> str:
    """The text with question marks for control characters, which would steer a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def spread(lengths: Sequence[int]) -> dict[str, int]:
    """Median, 95th percentile (nearest rank) and maximum."""
    ordered = sorted(lengths)
    if not ordered:
        return {}
    return {"p50": ordered[(len(ordered) - 1) // 2], "p95": ordered[_rank(len(ordered))], "max": ordered[-1]}


def _rank(number: int) -> int:
    return -(-95 * number // 100) - 1


def _lengths(rows: Iterable[Pair | Prompt]) -> dict[str, list[int]]:
    lengths: dict[str, list[int]] = {}

    def add(name: str, size: int) -> None:
        lengths.setdefault(name, []).append(size)

    for row in rows:
        if isinstance(row, Pair):
            add("prompt", _size(row.prompt))
            add("chosen", len(row.chosen))
            add("rejected", len(row.rejected))
        else:
            add("prompt", _size(row.messages))
            if row.reference is not None:
                add("reference", len(row.reference))
    return lengths


def _size(messages: Iterable[Message]) -> int:
    return sum(len(message.content) for message in messages)


def outlook(source: Source) -> str:
    """One line about a data set that is not read yet. Raises DataError when a local path is missing."""
    limit = f", at most {source.max_rows} used" if source.max_rows else ""
    left_out = f", without {', '.join(source.exclude_sources)}" if source.exclude_sources else ""
    return f"{source.source}: {_what(source)}{limit}{left_out}"


def _what(source: Source) -> str:
    if source.kind == "bundled":
        from ray_jobs.data.bundled.rows import NUM_ROWS

        return f"{NUM_ROWS[source.source]} rows, made by this project"
    if source.kind == "hub":
        how = "streamed" if source.streaming else "downloaded"
        revision = f" at {source.revision}" if source.revision else ", no revision pinned"
        of = f" of {source.config}" if source.config else ""
        return f"split {source.split}{of}, {how} from the hub{revision}"
    if "://" in source.source:
        return "remote files, read when the run starts"
    return _local(source.source)


def _several(name: str) -> str:
    """How many files there are, and whether some of them seem to be kept for tests."""
    files = [file.as_posix() for file in files_of(name) if not is_metadata(file.as_posix())]
    if len(files) < 2:
        return f"{len(files)} local file{'s' * (not files)}"
    start = len(os.path.commonpath(files))
    parts = [set(re.split(r"[^a-z]+", file[start:].lower())) for file in files]
    text = f"{len(files)} local files"
    if any("train" in words for words in parts) and any(words & _FOR_TESTS for words in parts):
        return f"{text}, of train and test alike: all are read; a pattern names some, as {name}/train*"
    return text


def _local(name: str) -> str:
    path = local_path(name)
    if not path.is_file() and (path.is_dir() or any(char in name for char in "*?[")):
        return _several(name)
    if not path.is_file():
        raise DataError(f"{name}: no such file")
    size = path.stat().st_size
    if not name.lower().endswith((".jsonl", ".ndjson")) or size > MAX_BYTES_COUNTED:
        return f"local file of {size / 1e6:.1f} MB"
    with path.open("rb") as stream:
        return f"local file of {sum(1 for line in stream if line.strip())} rows"
