"""Answers that begin with their prompt, as a generator gives them that returns its whole text."""

from collections.abc import Sequence

from ray_jobs.data.bad_rows import BadRow
from ray_jobs.data.turns import is_transcript, is_written_talk, split_system, transcript
from ray_jobs.records import Message

MIN_WORDS = 3
MIN_CHARACTERS = 12
"""Shorter prompts, such as a greeting, may well be the beginning of both answers."""

Cut = tuple[tuple[Message, ...], str, str]
"""The turns of the prompt, the chosen and the rejected answer."""


def without_prompt(turns: tuple[Message, ...], written: object, chosen: str, rejected: str) -> Cut | None:
    """The turns, and both answers without the prompt that they begin with; None where they do not.

    `written` is the prompt as its column has it.
    """
    if is_transcript(chosen) and is_transcript(rejected):
        whole = _transcripts(turns, chosen, rejected)
        if whole is not None:
            return whole
    is_talk = isinstance(written, str) and is_written_talk(written)
    if isinstance(written, str) and is_talk and (found := _cut(written, chosen, rejected)):
        return turns, *found
    asked = turns[-1].content.strip() if turns else ""
    if len(asked.split()) < MIN_WORDS and len(asked) < MIN_CHARACTERS:
        return None
    found = _cut(asked, chosen, rejected) or _cut_after(asked, chosen, rejected)
    return (turns, *found) if found else None


def _transcripts(turns: tuple[Message, ...], chosen: str, rejected: str) -> Cut | None:
    """Whole talks that hold the prompt: the turns before their last answers, and these."""
    try:
        before, better = transcript(chosen, "")
        other, worse = transcript(rejected, "")
    except BadRow:
        return None
    system, asked = split_system(turns)
    holds = begins(before, asked) or ends(before, asked)
    return ((*system, *before), better, worse) if before == other and holds else None


def _cut(head: str, chosen: str, rejected: str) -> tuple[str, str] | None:
    """Both answers without a beginning that more text follows."""
    rests = [_rest(head.strip(), answer.lstrip()) for answer in (chosen, rejected)]
    return (rests[0], rests[1]) if all(rests) else None


def _rest(head: str, answer: str) -> str:
    """What follows the whole words that a text begins with; nothing where it begins with others."""
    rest = answer[len(head) :]
    goes_on = head[-1:].isalnum() and rest[:1].isalnum()
    return rest.strip() if head and answer.startswith(head) and not goes_on else ""


def _cut_after(asked: str, chosen: str, rejected: str) -> tuple[str, str] | None:
    """The same for a template without its markers: `user`, the prompt, `assistant`, the answer."""
    turn = f"user\n{asked}\nassistant\n"
    starts = [_start(turn, answer.lstrip()) for answer in (chosen, rejected)]
    if starts[0] is None or starts[0] != starts[1]:
        return None
    return _cut(starts[0], chosen, rejected)


def _start(turn: str, answer: str) -> str | None:
    """What stands up to the end of a turn that a text begins with, after its system turn if it has any."""
    before, found, _ = answer.partition(turn)
    return before + turn if found and (not before or before.startswith("system\n")) else None


def ends(turns: Sequence[Message], last: Sequence[Message]) -> bool:
    """Whether turns end with others, whatever space is around them."""
    return not last or _stripped(turns[-len(last) :]) == _stripped(last)


def begins(turns: Sequence[Message], first: Sequence[Message]) -> bool:
    """Whether turns begin with others, whatever space is around them."""
    return _stripped(turns[: len(first)]) == _stripped(first)


def _stripped(turns: Sequence[Message]) -> list[tuple[str, str]]:
    return [(turn.role, turn.content.strip()) for turn in turns]
