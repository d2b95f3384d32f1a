"""A diverged training is not tried again: what it came to stands in its group's folder.

Ray Train and Ray Tune take up whatever raises, as often as lost workers may be replaced; a loss that exploded
explodes again.
"""

from pathlib import Path

from ray_jobs.runs import write_whole
from serving.storage.remote import Remote, is_uri

NOTE = "diverged.txt"


def note_diverged(group: str, reason: str) -> None:
    """`group`: the folder, by path or URI."""
    if is_uri(group):
        (Remote(group) / NOTE).write(reason.encode())
        return
    Path(group).mkdir(parents=True, exist_ok=True)
    write_whole(Path(group, NOTE), reason.encode())


def raise_if_diverged(group: str) -> None:
    """Raises TrainingDiverged, with the reason, when the group's training has diverged."""
    try:
        noted = (Remote(group) / NOTE).read() if is_uri(group) else Path(group, NOTE).read_bytes()
    except FileNotFoundError:
        return
    from ray_jobs.orpo.metrics import TrainingDiverged

    raise TrainingDiverged(noted.decode())
