"""Rows of a data set on the Hugging Face hub."""

import logging
import re
import textwrap
from collections.abc import Iterator

from ray_jobs.data.formats import RawRow
from ray_jobs.data.settings import Source
from ray_jobs.errors import DataError
from ray_jobs.hub import connection_errors, gated, refused, status_of

log = logging.getLogger(__name__)

LOOKUP_S = 20.0
"""Longest wait for the hub's word on a commit; what cannot be looked up may still be in the local cache."""

_CONFIGS = re.compile(r"config.*available.*?(\[.*?\])", re.DOTALL | re.IGNORECASE)
"""The names in what `datasets` says where none of several configurations is named, or none that there is."""
_QUOTED = re.compile(r"'([^']*)'")


def with_commit(source: Source) -> Source:
    """The same data set, pinned to the commit that it has on the hub now, where that can be looked up."""
    if source.kind != "hub":
        return source
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(source.source, revision=source.revision, timeout=LOOKUP_S).sha
    except connection_errors(ValueError) as error:
        log.debug("no commit of %s", source.source, exc_info=error)
        return source
    log.info("data     %s is at %s", source.source, commit)
    return source.model_copy(update={"revision": commit or source.revision})


def hub_rows(source: Source) -> Iterator[RawRow]:
    """All rows of the split, at the pinned revision.

    Raises DataError, in one line, when the data set is missing, gated or damaged, or the hub out of reach.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(
            source.source,
            source.config,
            revision=source.revision,
            split=source.split,
            streaming=source.streaming,
        )
        for number, row in enumerate(rows, start=1):
            yield RawRow(f"{source.source} row {number}", row)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{source.source}: {_explained(error, source)}") from error


def _explained(error: Exception, source: Source) -> str:
    """What to do about it; gated data sets are told apart only by the hub's words."""
    if found := _CONFIGS.search(str(error)):
        there = textwrap.shorten(", ".join(_QUOTED.findall(found[1])), 300, placeholder=" …")
        if source.config is None:
            return f"has several configurations; choose one with `config`: {there}"
        return f"has no configuration {source.config!r}; there are {there}"
    text = (str(error).splitlines() or [type(error).__name__])[0]
    lowered, status = text.lower(), status_of(error)
    if "gated" in lowered:
        return gated()
    if "offline" in lowered or isinstance(error, ConnectionError):
        return f"no such file here, and the hub cannot be reached: {text}"
    if "doesn't exist on the hub" in lowered:
        return "no such file here, and no such data set on the hub, or it is private and needs HF_TOKEN"
    if status in (401, 403, 429):
        return refused(status)
    return f"cannot be loaded from the hub: {text}"
