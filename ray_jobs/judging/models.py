"""An open judge of whatever kind the config names."""

from typing import TYPE_CHECKING

from ray_jobs.judging.backend import Backend, name_sha256
from ray_jobs.judging.settings import JudgeSettings
from serving.storage.remote import local_path

if TYPE_CHECKING:
    from serving.engine import Engine


def open_remote(settings: JudgeSettings, *, cores: int = 1, gpus: float = 0.0) -> Backend:
    """The judge of a backend other than `engine`, with so many cores and GPUs for itself.

    Raises ConfigError that names what is missing: a package, its extra, or a key's environment variable.
    """
    if settings.backend == "openai":
        from ray_jobs.judging.openai_judge import open_openai_judge

        return open_openai_judge(settings)
    if settings.backend == "vllm":
        from ray_jobs.judging.engine_judge import EngineJudge
        from ray_jobs.judging.vllm_engine import open_vllm

        engine, run = open_vllm(settings, gpus)
        return EngineJudge(engine, settings, sha256=named(settings), fingerprint=run)
    from ray_jobs.judging.flow_models import open_flow_judge_model

    return open_flow_judge_model(settings, named(settings), cores)


def open_local(engine: "Engine", settings: JudgeSettings, sha256: str) -> Backend:
    """The judge in an open engine; `sha256` is that of its file."""
    from ray_jobs.judging.adapter import ADAPTER, judge_sha256
    from ray_jobs.judging.engine_judge import EngineJudge, fingerprint_of

    run = fingerprint_of(engine.settings)
    if settings.adapter is None:
        return EngineJudge(engine, settings, sha256=sha256, fingerprint=run)
    sha256 = judge_sha256(sha256, settings.adapter)
    return EngineJudge(engine, settings, sha256=sha256, fingerprint=run, adapter=ADAPTER)


def named(settings: JudgeSettings) -> str:
    """The judge's identity: of its files where it is here, else of its name, behind which it may change
    unseen."""
    here = local_judge_sha256(settings)
    return here or name_sha256(f"{settings.backend}:{settings.model}:{settings.revision or ''}")


def local_judge_sha256(settings: JudgeSettings) -> str | None:
    """Of the folder or file that the judge is read from; None for one by name, or that is not there."""
    from ray_jobs.export.base import default_cache_dir, local_sha256

    if settings.backend == "openai" or not local_path(settings.model).exists():
        return None
    return local_sha256(settings.model, default_cache_dir())
