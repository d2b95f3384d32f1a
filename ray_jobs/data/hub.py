"""Rows of a data set on the Hugging Face hub."""

from collections.abc import Iterator

from ray_jobs.data.formats import RawRow
from ray_jobs.data.settings import Source
from ray_jobs.errors import DataError


def hub_rows(source: Source) -> Iterator[RawRow]:
    """All rows of the split, at the pinned revision.

    Raises DataError, in one line, when the data set is missing, gated or damaged, or the hub out of reach.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(
            source.source, revision=source.revision, split=source.split, streaming=source.streaming
        )
        for number, row in enumerate(rows, start=1):
            yield RawRow(f"{source.source} row {number}", row)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{source.source}: {_explained(error)}") from error


def _explained(error: Exception) -> str:
    """What to do about it; gated data sets are told apart only by the hub's words."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    lowered = text.lower()
    if any(word in lowered for word in ("gated", "401 client error", "403 client error")):
        return f"needs a login that has accepted its terms (hf auth login, or HF_TOKEN): {text}"
    if "offline" in lowered or isinstance(error, ConnectionError):
        return f"the hub cannot be reached; give the path of a local copy instead: {text}"
    return f"cannot be loaded from the hub: {text}"
