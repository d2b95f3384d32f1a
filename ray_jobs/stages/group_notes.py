"""Small notes in the folder of a trial's group, which is a path or a URI."""

from pathlib import Path

from ray_jobs.runs import write_whole
from serving.storage.remote import Remote, is_uri


def leave(group: str, name: str, data: bytes) -> None:
    """Write a note; it appears whole."""
    if is_uri(group):
        (Remote(group) / name).write(data)
        return
    Path(group).mkdir(parents=True, exist_ok=True)
    write_whole(Path(group, name), data)


def left(group: str, name: str) -> bytes | None:
    """A note, or None where nobody left it."""
    try:
        return (Remote(group) / name).read() if is_uri(group) else Path(group, name).read_bytes()
    except FileNotFoundError:
        return None
