"""Any OpenAI-compatible endpoint as the judge."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ray_jobs.errors import ConfigError
from ray_jobs.judging.backend import Call, Completion, Finish, OnDone, gathered, name_sha256
from ray_jobs.judging.endpoint import Health, ends_all, passes, reason_of, wait_s
from ray_jobs.judging.expected import TokenChoice
from ray_jobs.judging.settings import JudgeSettings

if TYPE_CHECKING:
    from openai import OpenAI

_TOP_LOGPROBS = 20
"""The most that the API allows."""
_CONNECT_TIMEOUT_S = 10.0


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
        self._health = Health(str(client.base_url))
        self._workers = ThreadPoolExecutor(settings.openai.max_concurrent_requests, "judge")

    def complete(
        self,
        calls: Sequence[Call],
        scores: Sequence[int],  # noqa: ARG002
        on_done: OnDone,
    ) -> list[Completion]:
        """All calls; callers on several threads share the requests in flight.

        Raises StageFailed for what is not one row's: an endpoint that cannot be reached or is in trouble and
        stays so, that refuses the key or the model, or what is asked for every row.
        """
        futures = [self._workers.submit(self._complete, call) for call in calls]
        return gathered(calls, futures, on_done)

    def num_prompt_tokens(self, prompt: str) -> int | None:  # noqa: ARG002
        return None

    def _complete(self, call: Call) -> Completion:
        """One row's word, or why it has none. Raises as `complete`."""
        import openai

        began_s = time.monotonic()

        def none(finish: Finish, reason: str) -> Completion:
            return Completion(call.id, "", finish, time.monotonic() - began_s, (), reason)

        try:
            reply = self._reply(call)
        except openai.APITimeoutError:
            reason = f"no answer in {self._settings.timeout_s:g} s (judge.timeout_s)"
            self._health.silent(call.id, reason)
            return none("timeout", reason)
        except openai.APIError as error:
            if error.code == "context_length_exceeded":
                return none("too_long_prompt", reason_of(error))
            self._health.refused(call.id, reason_of(error))
            return none("error", reason_of(error))
        if not getattr(reply, "choices", None):
            self._health.refused(call.id, "it returned no choice")
            return none("error", "the endpoint returned no choice")
        self._health.answered()
        return _completion(call.id, reply.choices[0], time.monotonic() - began_s)

    def _reply(self, call: Call) -> Any:
        """The endpoint's, asked for again while it is in trouble.

        Raises StageFailed where that lasts or all requests would fail, openai.APIError for what is the row's.
        """
        import openai

        retries = self._settings.openai.max_retries
        for attempt in range(1 + retries):
            try:
                return self._client.chat.completions.create(**self._arguments(call))
            except openai.APIError as error:
                if ends_all(error):
                    raise self._health.failure(f"refuses: {reason_of(error)}") from None
                if not passes(error):
                    raise
                if attempt == retries:
                    raise self._health.failure(
                        f"gives no answer in {1 + retries} tries: {reason_of(error)}; "
                        "what is judged is kept, the same command goes on"
                    ) from None
                time.sleep(wait_s(error, attempt))
        raise AssertionError("the last try returns or raises")

    def _arguments(self, call: Call) -> dict[str, Any]:
        import openai

        timeout_s = self._settings.timeout_s
        arguments: dict[str, Any] = {
            "model": self._settings.model,
            "messages": [{"role": "user", "content": call.prompt}],
            "temperature": call.temperature,
            "max_tokens": self._settings.max_verdict_tokens,
            "seed": call.seed,
            "timeout": openai.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S)),
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
    client = OpenAI(base_url=options.base_url, api_key=key or "none", max_retries=0)
    return OpenAIBackend(client, settings)


def _completion(call_id: str, choice: Any, seconds: float) -> Completion:
    finish: Finish = "length" if choice.finish_reason == "length" else "stop"
    return Completion(call_id, choice.message.content or "", finish, seconds, _tokens(choice.logprobs))


def _tokens(logprobs: Any) -> tuple[TokenChoice, ...]:
    if logprobs is None or not logprobs.content:
        return ()
    return tuple(
        TokenChoice(token.token, {other.token: other.logprob for other in token.top_logprobs or ()})
        for token in logprobs.content
    )
