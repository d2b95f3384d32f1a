"""A diverged training is not tried again: what it came to stands in its group's folder.

Ray Train and Ray Tune take up whatever raises, as often as lost workers may be replaced; a loss that exploded
explodes again.
"""

from ray_jobs.stages.group_notes import leave, left

NOTE = "diverged.txt"


def note_diverged(group: str, reason: str) -> None:
    """`group`: the folder, by path or URI."""
    leave(group, NOTE, reason.encode())


def raise_if_diverged(group: str) -> None:
    """Raises TrainingDiverged, with the reason, when the group's training has diverged."""
    if (noted := left(group, NOTE)) is not None:
        from ray_jobs.orpo.metrics import TrainingDiverged

        raise TrainingDiverged(noted.decode())
