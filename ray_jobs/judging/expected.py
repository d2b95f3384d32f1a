"""The expected score: what the judge's token probabilities at the score position say, on average.

E[score] = sum over the rubric's scores s of s * p(s) / sum of p: the mean of the judge's distribution,
renormalised over the scores that the rubric offers (G-Eval, arXiv 2303.16634, section 2.3). It is finer than
the sampled integer, so that two answers with the same score seldom tie.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TokenChoice:
    """One token that the judge wrote, and the likeliest tokens in its place with their natural
    log-probabilities."""

    piece: str
    top: Mapping[str, float]


def expected_score(tokens: Sequence[TokenChoice], tail: str, scores: Sequence[int]) -> float | None:
    """The expected score in the rubric's units; `tail` is the judge's text from the score's first digit to
    the end.

    None where the probabilities cannot be read: the score shares its token with something else than blanks,
    none of the scores is among the likeliest tokens, or one score's digits begin another's (1 and 10), so
    that the first token does not decide.
    """
    if one_begins_another(scores):
        return None
    found = _token_at(tokens, len(tail))
    if found is None:
        return None
    logprobs = [(score, logprob) for score in scores for logprob in _logprobs_of(score, found.top)]
    if not logprobs:
        return None
    peak = max(logprob for _, logprob in logprobs)
    weights = [(score, math.exp(logprob - peak)) for score, logprob in logprobs]
    return sum(score * weight for score, weight in weights) / sum(weight for _, weight in weights)


def _token_at(tokens: Sequence[TokenChoice], num_tail_characters: int) -> TokenChoice | None:
    """The token that holds the score's first digit, if nothing but blanks stands before it there.

    Counted from the end: text that was not valid UTF-8 may stand before, with other lengths than its tokens'.
    """
    for token in reversed(tokens):
        start = len(token.piece) - num_tail_characters
        if start >= 0:
            return None if token.piece[:start].strip() else token
        num_tail_characters = -start
    return None


def _logprobs_of(score: int, top: Mapping[str, float]) -> list[float]:
    digits = str(score)
    return [logprob for piece, logprob in top.items() if piece.strip() == digits]


def one_begins_another(scores: Sequence[int]) -> bool:
    texts = [str(score) for score in scores]
    return any(a != b and b.startswith(a) for a in texts for b in texts)
