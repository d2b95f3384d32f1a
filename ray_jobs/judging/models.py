"""An open judge of whatever kind the config names."""

from typing import TYPE_CHECKING

from ray_jobs.judging.backend import Backend, open_flow_judge_model
from ray_jobs.judging.settings import JudgeSettings

if TYPE_CHECKING:
    from ray_jobs.judging.engine_judge import Engine


def open_remote(settings: JudgeSettings) -> Backend:
    """The judge of a backend other than `engine`.

    Raises ConfigError that names what is missing: a package's extra, or a key's environment variable.
    """
    if settings.backend == "openai":
        from ray_jobs.judging.openai_judge import open_openai_judge

        return open_openai_judge(settings)
    return open_flow_judge_model(settings)


def open_local(engine: "Engine", settings: JudgeSettings, sha256: str) -> Backend:
    """The judge in an open engine; `sha256` is that of its file."""
    from ray_jobs.judging.adapter import ADAPTER, judge_sha256
    from ray_jobs.judging.engine_judge import EngineJudge

    if settings.adapter is None:
        return EngineJudge(engine, settings, sha256=sha256)
    return EngineJudge(engine, settings, sha256=judge_sha256(sha256, settings.adapter), adapter=ADAPTER)
