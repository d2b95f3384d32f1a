"""What goes into an engine and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length", "cancelled", "timeout", "error"]
LEAST_TEMPERATURE = 1e-5
"""What is below is greedy: logits divided by it could leave the range of a float."""
ENGINE_FAILED = "engine_failed"
"""The error code of what an engine could not answer because it has failed itself."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen, and when to end."""

    temperature: float = 0.0
    """0, or below `LEAST_TEMPERATURE`: greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0: the whole vocabulary."""
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    """Divides positive logits of the last 64 tokens of prompt and answer; 1: off."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens that the answer has; the prompt does not count."""
    frequency_penalty: float = 0.0
    """The same for each time that it has them."""
    seed: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    """Strings that end the answer; they are not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end the answer, besides the model's own; they are not part of it."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int | None = None
    """Per token: its log-probability and those of the k likeliest; 0: its own alone; None: none."""
    grammar: str | None = None
    """GBNF."""
    json_schema: str | None = None
    """A JSON schema as JSON text; excludes `grammar`."""

    @property
    def is_greedy(self) -> bool:
        return self.temperature < LEAST_TEMPERATURE


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, as token ids, and what to do with it."""

    id: str
    prompt: tuple[int, ...]
    sampling: Sampling = GREEDY
    deadline_s: float | None = None
    """Seconds from submission after which the answer so far is returned with `timeout`; None: never."""
    adapter: str | None = None
    num_written: int = 0
    """How many of the prompt's last tokens go on with an answer that an earlier request wrote. A
    deterministic engine computes them as it does answers: so it makes no difference whether a slot still
    holds them."""
    scores_prompt: bool = False
    """Also tell how likely the prompt's own tokens are, with `sampling.top_logprobs` of the others. All of it
    is computed then, whatever a slot holds."""


class TokenLogprob(NamedTuple):
    """Natural logarithms, of the model's own distribution before any sampling setting."""

    token_id: int
    logprob: float
    top: dict[int, float]


@dataclass(frozen=True, slots=True)
class Delta:
    """A part of a streamed answer: never half a character, never part of a stop string."""

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """One answer."""

    id: str
    text: str
    tokens: tuple[int, ...]
    """The answer's token ids, without the token that ended it."""
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_cached_tokens: int
    """Prompt tokens that another request, or an earlier turn, had computed already."""
    num_answer_tokens: int
    seconds: float
    """From submission to the end, waiting included."""
    first_token_s: float | None
    """From submission to the first token; None if there was none."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    """Of the prompt's tokens after the first, each given those before it, where they were asked for."""
    error: str | None = None
    error_code: str | None = None
