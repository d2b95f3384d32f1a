"""The stages in their order."""

from ray_jobs.stages import export, judge, overlap, prepare, promote, tune, verdict
from ray_jobs.stages.base import Stage


def stages() -> tuple[Stage, ...]:
    return (
        prepare.STAGE,
        tune.STAGE,
        export.STAGE,
        overlap.STAGE,
        judge.STAGE,
        verdict.STAGE,
        promote.STAGE,
    )
