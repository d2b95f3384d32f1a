"""Prompts that come back before their answers, with how likely the model finds them: for evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from serving.calls import Alternative, Call, ChosenToken, Text
from serving.engine import Engine, Result, TokenLogprob
from serving.events import chosen


def echo_of(
    call: Call, choice: int, engine: Engine, tokens: Sequence[int], logprobs: tuple[TokenLogprob, ...] | None
) -> list[Text]:
    """What a choice begins with. `tokens`: the prompt as the engine got it; `logprobs`: of those after the
    first, or None.

    A prompt of token ids is written with control tokens' names. The token that the vocabulary puts before a
    text is no part of it, and left out.
    """
    if not call.echo:
        return []
    prompt = call.prompts[choice // call.num_choices]
    text = prompt if isinstance(prompt, str) else engine.tokenizer.detokenize(tokens, special=True)
    if logprobs is None:
        return [Text(choice, text)]
    rest = chosen(engine, logprobs) or ()
    if isinstance(prompt, str) and not engine.detokenize(tokens[:1]):
        return [Text(choice, text, rest)]
    data = engine.tokenizer.piece(tokens[0])
    first = ChosenToken(Alternative(data.decode("utf-8", "replace"), data, None), ())
    return [Text(choice, text, (first, *rest))]


def without_answer(result: Result) -> Result:
    """Of a request for no token: an engine writes one at least, which nobody has asked for."""
    if result.finish_reason not in ("stop", "length"):
        return result
    logprobs = None if result.logprobs is None else ()
    return replace(result, text="", tokens=(), finish_reason="length", num_answer_tokens=0, logprobs=logprobs)
