"""flow-judge's own models as judges, as they come: no grammar, no probabilities, no seeds."""

import os
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ray_jobs.errors import ConfigError
from ray_jobs.judging.backend import Call, Completion, OnDone
from ray_jobs.judging.settings import JudgeSettings
from serving.storage.remote import local_path

if TYPE_CHECKING:
    from ray_jobs.judging.flow import BaseFlowJudgeModel

FLOW_LLAMAFILE = "flowaicom/Flow-Judge-v0.1-Llamafile"
"""The llamafile that flow-judge downloads by itself."""


class FlowJudgeBackend:
    """One of flow-judge's models. They take one caller at a time: others wait."""

    tokenizes = False
    fingerprint = ""

    def __init__(self, model: "BaseFlowJudgeModel", sha256: str) -> None:
        self.sha256 = sha256
        self._model = model
        self._lock = threading.Lock()

    def complete(
        self,
        calls: Sequence[Call],
        scores: Sequence[int],  # noqa: ARG002
        on_done: OnDone,
    ) -> list[Completion]:
        with self._lock:
            began_s = time.monotonic()
            texts = self._model._batch_generate([call.prompt for call in calls], use_tqdm=False)
            seconds = (time.monotonic() - began_s) / max(1, len(calls))
        done = [Completion(call.id, text, "stop", seconds) for call, text in zip(calls, texts, strict=True)]
        for completion in done:
            on_done(completion)
        return done

    def num_prompt_tokens(self, prompt: str) -> int | None:  # noqa: ARG002
        return None


def open_flow_judge_model(settings: JudgeSettings, sha256: str, cores: int) -> FlowJudgeBackend:
    """flow-judge's Hf or Llamafile, made with the config's sampling settings.

    Raises ConfigError that names the extra to install where its packages, or what they need, are missing.
    """
    import ray_jobs.judging.flow  # noqa: F401  (first: it keeps flow_judge off the root logger)

    opened = {"hf": _hf, "llamafile": _llamafile}[settings.backend]
    try:
        return FlowJudgeBackend(opened(settings, cores), sha256)
    except Exception as error:
        if type(error).__name__ not in ("HfError", "LlamafileError"):
            raise
        extra = f"pip install 'flow-judge[{settings.backend}]'"
        raise ConfigError(
            f"judge.backend: {settings.backend} cannot be used here ({extra}): {error}"
        ) from error


def _sampling(settings: JudgeSettings) -> dict[str, Any]:
    return {"temperature": settings.temperature, "max_new_tokens": settings.max_verdict_tokens}


def _hf(settings: JudgeSettings, cores: int) -> "BaseFlowJudgeModel":  # noqa: ARG001
    import torch
    from flow_judge.models import Hf

    return Hf(
        generation_params=_sampling(settings), _model_id=settings.model, flash_attn=torch.cuda.is_available()
    )


def _llamafile(settings: JudgeSettings, cores: int) -> "BaseFlowJudgeModel":
    """flow-judge starts the file as a server of its own, with the engine's cores, on a port that is free.

    Raises ConfigError for a file that is not there or cannot be run.
    """
    from flow_judge.models import Llamafile

    model = Llamafile(
        generation_params=_sampling(settings),
        context_size=settings.context_tokens,
        thread_count=cores,
        port=_free_port(),
    )
    if settings.model == FLOW_LLAMAFILE:
        return model
    path = local_path(settings.model).resolve()
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise ConfigError(
            f"judge.model: {settings.model}: backend: llamafile wants an executable file, or {FLOW_LLAMAFILE}"
        )
    # By a link in a folder of its own: flow-judge's shell command quotes no blanks.
    folder = tempfile.TemporaryDirectory(prefix="llamafile-")
    os.symlink(path, os.path.join(folder.name, model.model_filename))
    model.cache_dir = folder.name
    model.folder = folder  # as long as the model
    return model


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
