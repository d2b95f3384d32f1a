"""What a verdict keeps of every row: numbers, no texts. Texts are fetched for the few rows that are shown."""

import hashlib
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol, Self

from ray_jobs.records import Answer, Judgement, Prompt
from ray_jobs.verdict.phrases import courts_judge, refuses


@dataclass(frozen=True, slots=True)
class PromptFacts:
    """`opening`: hash of the first user turn, which rows of one conversation share."""

    id: str
    source: str
    opening: bytes

    @classmethod
    def of(cls, prompt: Prompt) -> Self:
        first = next((message.content for message in prompt.messages if message.role == "user"), prompt.id)
        opening = hashlib.sha256(first.encode("utf-8", "surrogatepass")).digest()
        return cls(sys.intern(prompt.id), prompt.source, opening)


@dataclass(frozen=True, slots=True)
class AnswerFacts:
    """`characters` is null exactly when there is no answer, and `error` says why."""

    id: str
    characters: int | None
    refuses: bool
    courts_judge: bool
    num_tokens: int
    seconds: float
    error: str | None
    backend: str | None

    @classmethod
    def of(cls, row: Answer) -> Self:
        text = row.answer
        return cls(
            id=sys.intern(row.id),
            characters=None if text is None else len(text),
            refuses=text is not None and refuses(text),
            courts_judge=text is not None and courts_judge(text),
            num_tokens=row.num_answer_tokens,
            seconds=row.seconds,
            error=None if text is not None else (row.error or "no text").splitlines()[0][:80],
            backend=row.backend,
        )


@dataclass(frozen=True, slots=True)
class Score:
    """A judgement without its feedback; `score` is null exactly when `failure` says why."""

    id: str
    metric: str
    score: int | None
    expected_score: float | None
    failure: str | None

    @classmethod
    def of(cls, row: Judgement) -> Self:
        return cls(sys.intern(row.id), row.metric, row.score, row.expected_score, row.failure)


@dataclass(frozen=True)
class Texts:
    """One prompt with what both models wrote and what the judge said of it; mappings are by model."""

    prompt: Prompt
    answers: Mapping[str, str | None]
    feedback: Mapping[str, str | None]


class FetchTexts(Protocol):
    """Texts by prompt ID, with the feedback of one metric."""

    def __call__(self, ids: Collection[str], metric: str) -> Mapping[str, Texts]: ...
