"""Any OpenAI-compatible endpoint as the judge."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

from ray_jobs.errors import ConfigError, ModelError
from ray_jobs.judging.backend import Call, Completion, Finish, OnDone, name_sha256
from ray_jobs.judging.expected import TokenChoice
from ray_jobs.judging.settings import JudgeSettings

if TYPE_CHECKING:
    from openai import OpenAI

_TOP_LOGPROBS = 20
"""The most that the API allows."""


class OpenAIBackend:
    """Sends flow-judge's prompt as one user message. The format is asked for, not forced, and read as
    strictly.

    The judge's identity in caches and reports is its address and name: what stands behind them may change
    unseen.
    """

    tokenizes = False

    def __init__(self, client: "OpenAI", settings: JudgeSettings) -> None:
        self.sha256 = name_sha256(f"openai:{client.base_url}:{settings.model}")
        self.fingerprint = f"logprobs {settings.openai.logprobs}"
        self._client = client
        self._settings = settings

    def complete(
        self,
        calls: Sequence[Call],
        scores: Sequence[int],  # noqa: ARG002
        on_done: OnDone,
    ) -> list[Completion]:
        done: dict[str, Completion] = {}
        with ThreadPoolExecutor(self._settings.openai.max_concurrent_requests) as pool:
            futures = [pool.submit(self._complete, call) for call in calls]
            try:
                for future in as_completed(futures):
                    completion = future.result()
                    done[completion.id] = completion
                    on_done(completion)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [done[call.id] for call in calls]

    def num_prompt_tokens(self, prompt: str) -> int | None:  # noqa: ARG002
        return None

    def _complete(self, call: Call) -> Completion:
        """One request. Raises ModelError where every request would fail: wrong key, unknown model."""
        import openai

        began_s = time.monotonic()
        try:
            reply = self._client.chat.completions.create(**self._arguments(call))
        except openai.APITimeoutError as error:
            return Completion(call.id, "", "timeout", time.monotonic() - began_s, (), str(error))
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise ModelError(f"judge.openai: {self._client.base_url} refuses: {error}") from error
        except openai.APIError as error:
            finish: Finish = "too_long_prompt" if error.code == "context_length_exceeded" else "error"
            return Completion(call.id, "", finish, time.monotonic() - began_s, (), str(error))
        return _completion(call.id, reply, time.monotonic() - began_s)

    def _arguments(self, call: Call) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "model": self._settings.model,
            "messages": [{"role": "user", "content": call.prompt}],
            "temperature": call.temperature,
            "max_tokens": self._settings.max_verdict_tokens,
            "seed": call.seed,
            "timeout": self._settings.timeout_s,
        }
        if self._settings.openai.logprobs:
            arguments |= {"logprobs": True, "top_logprobs": _TOP_LOGPROBS}
        return arguments


def open_openai_judge(settings: JudgeSettings) -> OpenAIBackend:
    """Raises ConfigError when the client is not installed or the key's environment variable is not set."""
    try:
        from openai import OpenAI
    except ImportError as error:
        raise ConfigError("judge.backend: openai needs the client: pip install openai") from error
    options = settings.openai
    key = os.environ.get(options.api_key_env)
    if not key and options.base_url is None:
        raise ConfigError(
            f"judge.openai.api_key_env: the environment variable {options.api_key_env} is not set"
        )
    return OpenAIBackend(OpenAI(base_url=options.base_url, api_key=key or "none"), settings)


def _completion(call_id: str, reply: Any, seconds: float) -> Completion:
    if not reply.choices:
        return Completion(call_id, "", "error", seconds, (), "the endpoint returned no choice")
    choice = reply.choices[0]
    finish: Finish = "length" if choice.finish_reason == "length" else "stop"
    return Completion(call_id, choice.message.content or "", finish, seconds, _tokens(choice.logprobs))


def _tokens(logprobs: Any) -> tuple[TokenChoice, ...]:
    if logprobs is None or not logprobs.content:
        return ()
    return tuple(
        TokenChoice(token.token, {other.token: other.logprob for other in token.top_logprobs or ()})
        for token in logprobs.content
    )
