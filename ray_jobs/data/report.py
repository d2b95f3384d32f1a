"""What is known of a data set: before reading it, and after."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ray_jobs.data.load import Loaded
from ray_jobs.data.settings import Source
from ray_jobs.errors import DataError
from ray_jobs.records import Message, Pair, Prompt
from serving.storage.remote import local_path

MAX_ROWS_SHOWN = 20
MAX_BYTES_COUNTED = 64_000_000


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
        "quarantined": loaded.reasons,
        "excluded": dict(loaded.excluded),
        "first_quarantined": [
            {"row": bad.row, "reason": bad.reason, "source": bad.source}
            for bad in loaded.quarantined[:MAX_ROWS_SHOWN]
        ],
        "by_source": dict(Counter(row.source for row in loaded.rows).most_common()),
        "characters": {name: spread(lengths) for name, lengths in _lengths(loaded.rows).items()},
        "fingerprint": loaded.fingerprint,
    }


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


def _local(name: str) -> str:
    path = local_path(name)
    if any(char in name for char in "*?[") or path.is_dir():
        return "local files"
    if not path.is_file():
        raise DataError(f"{name}: no such file")
    size = path.stat().st_size
    if not name.lower().endswith((".jsonl", ".ndjson")) or size > MAX_BYTES_COUNTED:
        return f"local file of {size / 1e6:.1f} MB"
    with path.open("rb") as stream:
        return f"local file of {sum(1 for line in stream if line.strip())} rows"
