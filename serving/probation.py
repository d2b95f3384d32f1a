"""A new champion's first answers, and when they are reason enough to take it back."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from serving.engine.types import ENGINE_FAILED, Request, Result
from serving.events import CLIENT_FAULTS


class RollbackRule(BaseModel):
    """When a replica puts the previous champion back. Judged on the answers of one replica."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 900.0
    """Seconds after its promotion in which a champion can be taken back."""
    min_answers: Annotated[int, Field(ge=1)] = 50
    """Answers before anything is decided; an engine that fails is reason enough by itself."""
    max_failure_share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.05
    """Of the answers; failures that a client can cause, as with a grammar of its own, do not count."""
    max_first_token_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """95 % of the first tokens must come sooner after a slot was free; None: however late."""


class Probation:
    """The outcomes of one champion's answers since its promotion. Not thread-safe."""

    def __init__(self, rule: RollbackRule, *, until_s: float) -> None:
        """`until_s`: seconds since 1970."""
        self._rule = rule
        self._until_s = until_s
        self._num_failed = 0
        self._first_tokens_s: list[float] = []

    def is_over(self, now_s: float) -> bool:
        return now_s > self._until_s

    def reason(self, request: Request, result: Result, *, now_s: float, waited_s: float = 0.0) -> str | None:
        """Why the champion has to go, after one more answer; None if it can stay.

        `waited_s`: how much of the answer's time was waiting for a slot, which is no fault of the model.
        """
        if self.is_over(now_s) or result.finish_reason == "cancelled":
            return None
        if result.error_code == ENGINE_FAILED:
            return "its engine failed"
        if result.finish_reason in ("stop", "length"):
            self._first_tokens_s.append((result.first_token_s or result.seconds) - waited_s)
        elif _is_failure(request, result):
            self._num_failed += 1
        return self._verdict()

    def refused(self, *, now_s: float) -> str | None:
        """The same after a request that the model did not take, through no fault of the client."""
        if self.is_over(now_s):
            return None
        self._num_failed += 1
        return self._verdict()

    def _verdict(self) -> str | None:
        rule, count = self._rule, len(self._first_tokens_s) + self._num_failed
        if count < rule.min_answers:
            return None
        if self._num_failed > rule.max_failure_share * count:
            return f"{self._num_failed} of its first {count} answers failed"
        limit_s = rule.max_first_token_s
        late = sum(limit_s is not None and seconds > limit_s for seconds in self._first_tokens_s)
        if late > 0.05 * count:
            return f"{late} of its first {count} answers began later than {limit_s:g} s"
        return None


def _is_failure(request: Request, result: Result) -> bool:
    """An answer that is long, or shaped by the client, may end badly through no fault of the model."""
    if result.finish_reason == "timeout":
        return result.first_token_s is None
    shaped = request.sampling.json_schema is not None or request.sampling.grammar is not None
    return result.finish_reason == "error" and not shaped and result.error_code not in CLIENT_FAULTS
