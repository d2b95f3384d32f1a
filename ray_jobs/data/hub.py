"""Rows of a data set on the Hugging Face hub."""

from collections.abc import Iterator
from typing import Any

from ray_jobs.data.formats import RawRow
from ray_jobs.data.settings import Source
from ray_jobs.errors import DataError


def hub_rows(source: Source) -> Iterator[RawRow]:
    """All rows of the split, at the pinned revision. Raises DataError in one line: missing, gated, offline."""
    dataset = _load(source)
    try:
        for number, row in enumerate(dataset, start=1):
            yield RawRow(f"{source.source} row {number}", row)
    except OSError as error:
        raise DataError(f"{source.source}: the download broke off: {_first_line(error)}") from error


def _load(source: Source) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(
            source.source, revision=source.revision, split=source.split, streaming=source.streaming
        )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{source.source}: {_explained(error)}") from error


def _explained(error: Exception) -> str:
    """What to do about it; gated data sets are told apart only by the hub's words."""
    text = _first_line(error)
    lowered = text.lower()
    if "gated" in lowered or "401" in text or "403" in text:
        return f"needs a login that has accepted its terms (huggingface-cli login, or HF_TOKEN): {text}"
    if "offline" in lowered or isinstance(error, ConnectionError):
        return f"the hub cannot be reached; give the path of a local copy instead: {text}"
    return f"cannot be loaded from the hub: {text}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
