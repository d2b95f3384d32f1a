"""From preference pairs to token ids, exactly as the model meets them at inference.

The prompt is rendered by the model's own chat template with its generation prompt; an answer is what
follows it in the rendered conversation, up to the control token that ends the turn. Only control
tokens that the template writes become control tokens; the same characters inside a message stay text.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ray_jobs.errors import ModelError
from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.records import Message, Pair

Tokenizer = Any

_PRIVATE_USE = range(0xF0000, 0xFFFFE)


@dataclass(frozen=True)
class PairTokens:
    """Token ids of one pair; both answers end with the token that ends a turn.

    `num_cut` counts prompt tokens that were cut from the start to fit.
    """

    id: str
    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    num_cut: int = 0

    @property
    def num_unshared(self) -> int:
        """Tokens of prompt + chosen and prompt + rejected, unpadded."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)

    @property
    def num_shared(self) -> int:
        """Tokens with the prompt counted once."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)

    def num_likelihood(self, learns_prompts: bool = True) -> int:
        """Tokens of the likelihood term; the first token of a prompt is not predicted."""
        return len(self.chosen) + (len(self.prompt) - 1 if learns_prompts else 0)


class TemplateRefusal(ModelError):
    """The chat template does not render a conversation, or not so that it could be trained on."""


@dataclass(frozen=True)
class Skipped:
    """A pair that is not trained on, and why."""

    id: str
    reason: str
    detail: str = ""
    """What the chat template says, of reason `template`."""


@dataclass(frozen=True)
class TokenizedPairs:
    """The usable pairs, and a count for each reason why others are not."""

    pairs: tuple[PairTokens, ...]
    skipped: tuple[Skipped, ...]
    reasons: dict[str, int] = field(default_factory=dict)
    num_cut_prompts: int = 0


def tokenize_pairs(tokenizer: Tokenizer, pairs: Iterable[Pair], settings: TrainingSettings) -> TokenizedPairs:
    """All pairs through `tokenize_pair`, in order.

    Raises ModelError when none is usable and it is the chat template that refuses some.
    """
    results = [tokenize_pair(tokenizer, pair, settings) for pair in pairs]
    kept = tuple(item for item in results if isinstance(item, PairTokens))
    skipped = tuple(item for item in results if isinstance(item, Skipped))
    reasons = dict(Counter(item.reason for item in skipped))
    refused = [item.detail for item in skipped if item.detail]
    if refused and not kept:
        raise ModelError(
            f"of {len(results)} pairs none is usable; {len(refused)} do not fit the model's chat template:"
            f" {refused[0]}"
        )
    return TokenizedPairs(kept, skipped, reasons, sum(item.num_cut > 0 for item in kept))


def tokenize_pair(tokenizer: Tokenizer, pair: Pair, settings: TrainingSettings) -> PairTokens | Skipped:
    """The tokens of a pair, or the reason why it cannot be trained on.

    Raises ModelError when the tokenizer's chat template cannot be used for training.
    """
    reason = _unusable_text(pair)
    if reason:
        return Skipped(pair.id, reason)
    try:
        prompt = prompt_tokens(tokenizer, pair.prompt)
        chosen = answer_tokens(tokenizer, pair.prompt, pair.chosen, prompt)
        rejected = answer_tokens(tokenizer, pair.prompt, pair.rejected, prompt)
    except TemplateRefusal as error:
        return Skipped(pair.id, "template", str(error))
    if chosen == rejected:
        return Skipped(pair.id, "identical")
    return _fit(PairTokens(pair.id, prompt, chosen, rejected), settings)


def _unusable_text(pair: Pair) -> str | None:
    texts = [message.content for message in pair.prompt] + [pair.chosen, pair.rejected]
    if any("\0" in text for text in texts):
        return "nul"
    if any("\ud800" <= char <= "\udfff" for text in texts for char in text):
        return "bad_unicode"
    if not any(message.content.strip() for message in pair.prompt):
        return "empty_prompt"
    if not pair.chosen.strip():
        return "empty_chosen"
    if not pair.rejected.strip():
        return "empty_rejected"
    return "identical" if pair.chosen == pair.rejected else None


def _fit(tokens: PairTokens, settings: TrainingSettings) -> PairTokens | Skipped:
    num_answer = max(len(tokens.chosen), len(tokens.rejected))
    num_over = len(tokens.prompt) + num_answer - settings.max_pair_tokens
    if num_over <= 0:
        return tokens
    if settings.overlong == "drop":
        return Skipped(tokens.id, "too_long")
    if num_over >= len(tokens.prompt):
        return Skipped(tokens.id, "answer_too_long")
    return PairTokens(tokens.id, tokens.prompt[num_over:], tokens.chosen, tokens.rejected, num_over)


def prompt_tokens(tokenizer: Tokenizer, prompt: Sequence[Message]) -> tuple[int, ...]:
    """The ids that a model is given before it answers."""
    ids = _render(tokenizer, prompt, add_generation_prompt=True).ids(tokenizer)
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:1] != [bos] and _adds_bos(tokenizer):
        ids = [bos, *ids]
    return tuple(ids)


def answer_tokens(
    tokenizer: Tokenizer, prompt: Sequence[Message], answer: str, prompt_ids: tuple[int, ...]
) -> tuple[int, ...]:
    """The ids that a model would have to produce for `answer`, with the token that ends its turn.

    Raises TemplateRefusal when the answered conversation does not go on from the prompt, as where a template
    writes a system turn only before the last one.
    """
    conversation = (*prompt, Message("assistant", answer))
    # rendered with the same escapes, so that the prompt's text is a prefix of the conversation's
    whole = _render(tokenizer, conversation, add_generation_prompt=False)
    start = _render(tokenizer, prompt, add_generation_prompt=True, escapes=whole.escapes).text
    if not whole.text.startswith(start):
        raise TemplateRefusal(
            "it writes an answered conversation differently from the prompt that it generates from, so"
            " answers have no place to start"
        )
    end = _end_of_turn(tokenizer, whole, len(start), answer)
    ids = _Rendered(whole.text[len(start) : end], whole.escapes).ids(tokenizer)
    joint = _Rendered(whole.text[:end], whole.escapes).ids(tokenizer)
    bare_prompt = prompt_ids[1:] if len(joint) and joint[0] != prompt_ids[0] else prompt_ids
    if joint[: len(bare_prompt)] == list(bare_prompt):
        ids = joint[len(bare_prompt) :]
    if end is not None:
        return tuple(ids)
    if tokenizer.eos_token_id is None:
        raise ModelError("neither the chat template nor the tokenizer has a token that ends a turn")
    return (*ids, tokenizer.eos_token_id)


def _end_of_turn(tokenizer: Tokenizer, whole: "_Rendered", start: int, answer: str) -> int | None:
    """Where in the text an answer's turn ends: behind the first control string after the answer.

    At it a model stops; some templates write more, such as a line break and a token that ends the text.
    None where the template leaves the turn open.
    """
    shown = _escaped(answer, whole.escapes).strip()  # as many templates have it
    found = whole.text.find(shown, start)
    after = start if found < 0 else found + len(shown)
    control = _control_pattern(tokenizer).search(whole.text, after)
    return control.end() if control else None


@dataclass(frozen=True)
class _Rendered:
    """Template text in which control strings that came from messages stand as private-use characters."""

    text: str
    escapes: dict[str, str]

    def ids(self, tokenizer: Tokenizer) -> list[int]:
        if not any(mark in self.text for mark in self.escapes.values()):
            return list(tokenizer(self.text, add_special_tokens=False)["input_ids"])
        return self._ids_of_runs(tokenizer)

    def _ids_of_runs(self, tokenizer: Tokenizer) -> list[int]:
        """Control tokens by their id, the runs of text between them with control tokens switched off."""
        special = _special_tokens(tokenizer)
        ids: list[int] = []
        for run in _control_pattern(tokenizer).split(self.text):
            if run in special:
                ids.append(special[run])
            elif run:
                plain = self._unescaped(run)
                ids += tokenizer(plain, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    def _unescaped(self, text: str) -> str:
        for literal, mark in self.escapes.items():
            text = text.replace(mark, literal)
        return text


def _render(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    escapes: dict[str, str] | None = None,
) -> _Rendered:
    from jinja2.exceptions import TemplateError

    if getattr(tokenizer, "chat_template", None) is None:
        raise ModelError("the model's tokenizer has no chat template")
    if escapes is None:
        escapes = _escapes_for(tokenizer, [message.content for message in messages])
    rows = [{"role": message.role, "content": _escaped(message.content, escapes)} for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            rows, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        raise TemplateRefusal(f"it says: {' '.join(str(error).split())[:300]}") from error
    return _Rendered(text, escapes)


def _escapes_for(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, str]:
    """A private-use character, absent from the texts, for every control string that occurs in them."""
    joined = "\n".join(texts)
    found = sorted((name for name in _special_tokens(tokenizer) if name in joined), key=len, reverse=True)
    free = (chr(code) for code in _PRIVATE_USE if chr(code) not in joined)
    return dict(zip(found, free, strict=False))


def _escaped(text: str, escapes: dict[str, str]) -> str:
    for literal, mark in escapes.items():
        text = text.replace(literal, mark)
    return text


@lru_cache(maxsize=4)
def _special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Control strings and their ids; a tokenizer takes milliseconds to list thousands of added tokens."""
    added = tokenizer.added_tokens_decoder
    return {str(token.content): index for index, token in added.items() if token.special}


@lru_cache(maxsize=4)
def _control_pattern(tokenizer: Tokenizer) -> re.Pattern[str]:
    """Any control string, as a group."""
    longest_first = sorted(_special_tokens(tokenizer), key=len, reverse=True)
    return re.compile("(" + ("|".join(map(re.escape, longest_first)) or "(?!)") + ")")


def _adds_bos(tokenizer: Tokenizer) -> bool:
    return bool(list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id])
