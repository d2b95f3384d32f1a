"""What judges: the seam between the rubric's side and whatever runs the judge model."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from ray_jobs.errors import ConfigError
from ray_jobs.judging.expected import TokenChoice
from ray_jobs.judging.settings import JudgeSettings

if TYPE_CHECKING:
    from ray_jobs.judging.flow import BaseFlowJudgeModel

Finish = Literal["stop", "length", "timeout", "too_long_prompt", "error"]


@dataclass(frozen=True)
class Call:
    """One prompt for the judge. `prompt` is flow-judge's user prompt, before any chat template."""

    id: str
    prompt: str
    seed: int
    temperature: float


@dataclass(frozen=True)
class Completion:
    """What the judge wrote, and nothing else; `tokens` is empty where probabilities are not to be had."""

    id: str
    text: str
    finish: Finish
    seconds: float
    tokens: tuple[TokenChoice, ...] = ()
    error: str | None = None


OnDone = Callable[[Completion], None]


class Backend(Protocol):
    """Runs a judge model."""

    sha256: str
    """Of the judge's file, or of what names it."""
    fingerprint: str
    """Of how it is run, as far as its words depend on it and `JudgeSettings` and `sha256` do not say it."""
    tokenizes: bool
    """Whether this process makes the tokens, so that control tokens in text stay text."""

    def complete(self, calls: Sequence[Call], scores: Sequence[int], on_done: OnDone) -> list[Completion]:
        """The judge's words, in the order of the calls; `on_done` gets each as it ends, in the caller's
        thread.

        `scores` are those that the rubric offers: a backend that can, allows no others.
        """

    def num_prompt_tokens(self, prompt: str) -> int | None:
        """Tokens that a user prompt takes, chat template included; None where they cannot be counted."""


class FlowJudgeBackend:
    """One of flow-judge's own models (Hf, Vllm, Llamafile), as it comes: no grammar, no probabilities, no
    seeds."""

    tokenizes = False
    fingerprint = ""

    def __init__(self, model: "BaseFlowJudgeModel", name: str) -> None:
        self._model = model
        self.sha256 = name_sha256(name)

    def complete(
        self,
        calls: Sequence[Call],
        scores: Sequence[int],  # noqa: ARG002
        on_done: OnDone,
    ) -> list[Completion]:
        import time

        began_s = time.monotonic()
        texts = self._model._batch_generate([call.prompt for call in calls], use_tqdm=False)
        seconds = (time.monotonic() - began_s) / max(1, len(calls))
        done = [Completion(call.id, text, "stop", seconds) for call, text in zip(calls, texts, strict=True)]
        for completion in done:
            on_done(completion)
        return done

    def num_prompt_tokens(self, prompt: str) -> int | None:  # noqa: ARG002
        return None


def open_flow_judge_model(settings: JudgeSettings) -> FlowJudgeBackend:
    """flow-judge's Hf, Vllm or Llamafile, made with the config's sampling settings.

    Raises ConfigError that names the extra to install where its packages, or what they need, are missing.
    """
    import ray_jobs.judging.flow  # noqa: F401  (first: it keeps flow_judge off the root logger)

    sampling = {"temperature": settings.temperature, "max_new_tokens": settings.max_verdict_tokens}
    try:
        model = _flow_judge_class(settings.backend)(generation_params=sampling, **_model_options(settings))
    except Exception as error:
        if type(error).__name__ not in ("HfError", "VllmError", "LlamafileError"):
            raise
        extra = f"pip install 'flow-judge[{settings.backend}]'"
        raise ConfigError(
            f"judge.backend: {settings.backend} cannot be used here ({extra}): {error}"
        ) from error
    return FlowJudgeBackend(model, f"{settings.backend}:{settings.model}:{settings.revision or ''}")


def _flow_judge_class(backend: str) -> "type[BaseFlowJudgeModel]":
    from flow_judge.models import Hf, Llamafile, Vllm

    classes: dict[str, type[BaseFlowJudgeModel]] = {"hf": Hf, "vllm": Vllm, "llamafile": Llamafile}
    return classes[backend]


def _model_options(settings: JudgeSettings) -> dict[str, object]:
    """The options that each of the classes takes for its model and its context."""
    if settings.backend == "llamafile":
        return {"context_size": settings.context_tokens}
    if settings.backend == "vllm":
        return {"_model_id": settings.model, "max_model_len": settings.context_tokens, "quantized": False}
    import torch

    return {"_model_id": settings.model, "flash_attn": torch.cuda.is_available()}


def name_sha256(name: str) -> str:
    """Stands for a judge whose file is not at hand."""
    return hashlib.sha256(name.encode()).hexdigest()
