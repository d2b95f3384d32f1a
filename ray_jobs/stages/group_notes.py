"""The folder of a trial's group, which is a path or a URI: small notes, and what else is in it."""

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


def remove(group: str, name: str) -> None:
    """A note; nothing where there is none."""
    if is_uri(group):
        (Remote(group) / name).remove()
    else:
        Path(group, name).unlink(missing_ok=True)


def files_in(folder: str) -> set[str]:
    """All files in it and below, by their paths in it; none where there is no such folder."""
    if is_uri(folder):
        return set(Remote(folder).listing())
    root = Path(folder)
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
