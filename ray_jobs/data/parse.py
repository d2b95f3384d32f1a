"""From a raw row to a typed one, or to the reason why it cannot be used.

Formats: the columns of orpo-dpo-mix-40k and FineTome-100k, and TRL's preference formats (text or
messages, with the prompt in a column of its own or only inside the answers), see
https://huggingface.co/docs/trl/dataset_formats.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ray_jobs.data.bad_rows import BadRow, not_text
from ray_jobs.data.columns import (
    CONVERSATIONS,
    Cells,
    cell,
    chosen_column,
    has,
    may_hold_prompt,
    prompt_column,
    rejected_column,
    source_of,
    taken_columns,
)
from ray_jobs.data.repeated import begins, ends, without_prompt
from ray_jobs.data.settings import Columns
from ray_jobs.data.texts import (
    check_no_tools,
    check_no_written_messages,
    check_size,
    check_text,
    is_written_messages,
)
from ray_jobs.data.turns import (
    TEXT,
    check_prompt,
    is_messages,
    is_transcript,
    is_written_talk,
    messages_of,
    prompt_turns,
    split_system,
    transcript,
)
from ray_jobs.data.winners import Side, only_text, sides
from ray_jobs.records import Message, Pair, Prompt, prompt_sha256

Row = TypeVar("Row", Pair, Prompt)
Turns = tuple[Message, ...]


@dataclass(frozen=True)
class Read(Generic[Row]):
    """A typed row, and how it was read.

    `used` has, for each column that something was taken of, what it is; `is_cut` says that both answers began
    with the prompt, which was cut off.
    """

    row: Row
    used: Mapping[str, str]
    is_cut: bool = False


def parse_pair(row: Mapping[str, Any], columns: Columns) -> Pair:
    """Raises BadRow."""
    return read_pair(row, columns).row


def parse_prompt(row: Mapping[str, Any], columns: Columns) -> Prompt:
    """Raises BadRow."""
    return read_prompt(row, columns).row


def read_pair(row: Mapping[str, Any], columns: Columns) -> Read[Pair]:
    """Raises BadRow."""
    check_size(row)
    check_no_tools(row)
    cells = Cells(row, columns)
    better, worse = sides(cells)
    turns, chosen, rejected, is_cut = _pair_parts(cells, better, worse)
    turns = with_system_column(turns, cells)
    check_prompt(turns)
    for text, reason in ((chosen, "empty_chosen"), (rejected, "empty_rejected")):
        check_text(text, reason)
    if chosen.strip() == rejected.strip():
        raise BadRow("identical", worse.column)
    row_id = content_id(prompt_sha256(turns), chosen, rejected)
    return Read(Pair(row_id, source_of(row, columns), turns, chosen, rejected), cells.used, is_cut)


def read_prompt(row: Mapping[str, Any], columns: Columns) -> Read[Prompt]:
    """Conversations give the turns before their last answer, which is the reference; those that end with the
    user are the prompt as they are. Raises BadRow."""
    check_size(row)
    check_no_tools(row)
    cells = Cells(row, columns)
    name = columns.conversations or next((name for name in CONVERSATIONS if row.get(name)), "")
    reference: str | None
    if name and columns.prompt is None:
        turns, reference = _last_answer(messages_of(cells.use(name, "turns"), name), name)
    else:
        turns, reference = prompt_turns(cells.prompt(), cells.prompt_name), None
    if reference is None:
        reference = _plain_answer(cells)
    turns = with_system_column(turns, cells)
    check_prompt(turns)
    row_id = content_id(prompt_sha256(turns), reference or "")
    return Read(Prompt(row_id, source_of(row, columns), turns, reference), cells.used)


def with_system_column(turns: Turns, cells: Cells) -> Turns:
    """The turns, after a system turn of the row's own column where they have none."""
    system, spoken = split_system(turns)
    if system or not spoken:
        return turns
    text = cells.system()
    return turns if text is None else (Message("system", text), *turns)


def _pair_parts(cells: Cells, better: Side, worse: Side) -> tuple[Turns, str, str, bool]:
    """The prompt's turns, both answers, and whether the prompt was cut off these."""
    if isinstance(better.value, str) and isinstance(worse.value, str):
        for side in (better, worse):
            check_no_written_messages(side.value, side.column)
        if cell(cells.row, cells.prompt_name) is None:
            return *_implicit(cells, better, worse), False
    turns, chosen = _answered(cells, better)
    other, rejected = _answered(cells, worse)
    if turns is None or other is None:
        turns = other = turns or other or _asked(cells)
    if turns != other:
        raise BadRow("prompts_differ", worse.column)
    written = cell(cells.row, cells.prompt_name)
    if (found := without_prompt(turns, written, chosen, rejected)) is not None:
        return *found, True
    if isinstance(written, str) and is_written_talk(written):
        return turns, chosen.strip(), rejected.strip(), False
    return turns, chosen, rejected, False


def _asked(cells: Cells) -> Turns:
    """The turns of the prompt's column. Raises BadRow where a row has none."""
    prompt = cells.prompt()
    if prompt is None:
        raise no_prompt(cells.row, cells.columns)
    return prompt_turns(prompt, cells.prompt_name)


def _implicit(cells: Cells, better: Side, worse: Side) -> tuple[Turns, str, str]:
    """Texts without a prompt's column: it is a transcript's, or what both begin with."""
    if not brings_prompt(cells.row, cells.columns):
        raise no_prompt(cells.row, cells.columns)
    chosen, rejected = better.value, worse.value
    if not is_transcript(chosen) and not is_transcript(rejected):
        shared = _shared_words(chosen, rejected)
        return (Message("user", shared.strip()),), chosen[len(shared) :], rejected[len(shared) :]
    turns, answer = transcript(chosen, better.column)
    other, rejected_answer = transcript(rejected, worse.column)
    if turns != other:
        raise BadRow("prompts_differ", worse.column)
    return turns, answer, rejected_answer


def _shared_words(one: str, other: str) -> str:
    """What both texts begin with, up to the end of a word: letters in common are no part of a prompt."""
    length = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
    return one[: max((at + 1 for at, char in enumerate(one[:length]) if char.isspace()), default=0)]


def brings_prompt(row: Mapping[str, Any], columns: Columns) -> bool:
    """Whether the answers can bring their prompt along: messages, also in the form of text, or transcripts;
    plain texts where no other column may be the prompt."""
    for answer in (cell(row, name) for name in (chosen_column(columns), rejected_column(columns))):
        answer = only_text(answer)
        if not isinstance(answer, str) or is_transcript(answer) or is_written_messages(answer):
            return True
    is_named = columns.prompt is not None or has(row, prompt_column(row, columns))
    return not is_named and other_prompt(row, columns) is None


def other_prompt(row: Mapping[str, Any], columns: Columns) -> str | None:
    """The column that may hold the prompt, where that is not looked for there."""
    return may_hold_prompt(row, taken_columns(row, columns))


def no_prompt(row: Mapping[str, Any], columns: Columns) -> BadRow:
    """A row without a prompt, with the column that may hold it."""
    other = other_prompt(row, columns)
    return BadRow("empty_prompt", prompt_column(row, columns), hint=name_it(other) if other else "")


def name_it(column: str) -> str:
    return f"column {column!r} may hold the prompt; name it with columns.prompt"


def _answered(cells: Cells, side: Side) -> tuple[Turns | None, str]:
    """The turns before an answer, from the prompt column if not inside (None where there is none), and the
    answer."""
    if side.value is None:
        raise BadRow(f"empty_{side.what}", side.column)
    if isinstance(side.value, str):
        check_no_written_messages(side.value, side.column)
        has_prompt = cell(cells.row, cells.prompt_name) is not None
        return (_asked(cells) if has_prompt else None), side.value
    if not is_messages(side.value) and side.value != []:
        raise not_text(side.value, side.column, TEXT)
    turns = messages_of(side.value, side.column)
    if not turns:
        raise BadRow(f"empty_{side.what}", side.column)
    if turns[-1].role != "assistant":
        raise BadRow("no_answer", side.column)
    before = turns[:-1]
    system, spoken = split_system(before)
    if not spoken:
        asked_system, asked = split_system(_asked(cells))
        return (*(system or asked_system), *asked), turns[-1].content
    return _with_prompt(cells, before, side.column), turns[-1].content


def _with_prompt(cells: Cells, before: Turns, column: str) -> Turns:
    """The turns before an answer, and what only the messages of the prompt's column have of them.

    Raises BadRow where these say something else. A prompt as plain text is overruled: it may be the last turn
    alone, or what a judge was asked.
    """
    if not is_messages(cell(cells.row, cells.prompt_name)):
        return before
    asked_system, asked = split_system(messages_of(cells.prompt(), cells.prompt_name))
    system, spoken = split_system(before)
    if not ends(asked, spoken):
        if not ends(spoken, asked) and not begins(spoken, asked):
            raise BadRow("prompts_differ", column)
        asked = spoken
    return (*(system or asked_system), *(spoken if len(asked) == len(spoken) else asked))


def _last_answer(turns: Turns, column: str) -> tuple[Turns, str | None]:
    """The turns before the last answer, and that; all turns and nothing where the user has the last word."""
    if turns and turns[-1].role == "user":
        return turns, None
    last = max((at for at, turn in enumerate(turns) if turn.role == "assistant"), default=None)
    if last is None or not turns[last].content.strip():
        raise BadRow("no_answer", column)
    check_text(turns[last].content, "no_answer")
    return turns[:last], turns[last].content


def _plain_answer(cells: Cells) -> str | None:
    """The answer of its own column: text, a whole number, or a list of one text."""
    name = cells.columns.answer
    answer = only_text(cells.use(name, "answer")) if name else None
    if isinstance(answer, int) and not isinstance(answer, bool):
        return str(answer)
    if answer is not None and not isinstance(answer, str):
        raise not_text(answer, name or "", "text, or a whole number")
    if answer is not None:
        check_text(answer, "no_answer")
    return answer


def content_id(*parts: str) -> str:
    """The first 16 hex digits of a hash of the parts: the same content has the same id everywhere."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:16]
