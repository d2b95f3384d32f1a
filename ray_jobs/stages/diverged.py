"""A diverged training is not tried again: what it came to stands in its group's folder.

Ray Train and Ray Tune take up whatever raises, as often as lost workers may be replaced; a loss that exploded
explodes again.
"""

from pathlib import Path

from ray_jobs.runs import write_whole

NOTE = "diverged.txt"


def note_diverged(group: Path, reason: str) -> None:
    group.mkdir(parents=True, exist_ok=True)
    write_whole(group / NOTE, reason.encode())


def raise_if_diverged(group: Path) -> None:
    """Raises TrainingDiverged, with the reason, when the group's training has diverged."""
    if (group / NOTE).is_file():
        from ray_jobs.orpo.metrics import TrainingDiverged

        raise TrainingDiverged((group / NOTE).read_text(encoding="utf-8"))
