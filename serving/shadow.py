"""A second model answers what the champion is asked, unseen, for judges to compare.

The rows go to `shadow/*.jsonl` in the registry: prompt, champion's answer, other model's answer. They hold
what users wrote, which nothing else here does; so this is off unless it is configured.
`python -m ray_jobs.shadow` has them judged.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from serving.affinity import position
from serving.calls import Call
from serving.engine.types import Result

_ROLES = frozenset({"system", "user", "assistant"})


class Shadow(BaseModel):
    """Which calls are answered a second time. One at a time per replica, and only while nobody waits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[str, Field(min_length=1)]
    """A name out of /v1/models."""
    share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
    """Of the users."""

    def takes(self, call: Call) -> bool:
        """Plain chats with the champion alone: what the judges can read."""
        plain = call.messages is not None and all(turn["role"] in _ROLES for turn in call.messages)
        free = not call.tools and call.sampling.json_schema is None and call.num_choices == 1
        return plain and free and call.model in (None, "champion") and position(call) < self.share


def row_of(call: Call, answers: Mapping[str, tuple[str, Result]]) -> dict[str, Any]:
    """A line of the file. `answers`: of `champion` and `shadow`, each with the model's sha256."""
    messages = [{"role": turn["role"], "content": turn["content"]} for turn in call.messages or ()]
    prompt_sha256 = _prompt_sha256(messages)
    return {
        "id": call.id,
        "source": "shadow",
        "messages": messages,
        "reference": None,
        "asked_s": round(time.time(), 3),
        "answers": {
            name: _answer(call.id, prompt_sha256, sha256, result)
            for name, (sha256, result) in answers.items()
        },
    }


def _prompt_sha256(messages: Iterable[Mapping[str, str]]) -> str:
    """As the pipeline hashes prompts: every text with its length before it."""
    digest = hashlib.sha256()
    for data in (turn[key].encode() for turn in messages for key in ("role", "content")):
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _answer(row_id: str, prompt_sha256: str, model_sha256: str, result: Result) -> dict[str, Any]:
    failed = result.finish_reason not in ("stop", "length")
    return {
        "id": row_id,
        "source": "shadow",
        "prompt_sha256": prompt_sha256,
        "model_sha256": model_sha256,
        "answer": None if failed else result.text,
        "num_prompt_tokens": result.num_prompt_tokens,
        "num_cached_tokens": result.num_cached_tokens,
        "num_answer_tokens": result.num_answer_tokens,
        "finish_reason": "error" if failed else result.finish_reason,
        "seconds": round(result.seconds, 4),
        "error": (result.error or result.finish_reason) if failed else None,
    }
