"""The stages in their order."""

from ray_jobs.stages import export, generate, judge, prepare, promote, tune, verdict
from ray_jobs.stages.base import Stage


def stages() -> tuple[Stage, ...]:
    return (
        prepare.STAGE,
        tune.STAGE,
        export.STAGE,
        generate.STAGE,
        judge.STAGE,
        verdict.STAGE,
        promote.STAGE,
    )
