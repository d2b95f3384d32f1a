"""Judge pairs as rows, in the schema of orpo-dpo-mix-40k."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.judge_pairs.answers import SCORES, SLOTS, answer_of
from ray_jobs.data.bundled.judge_pairs.families import PREFIX, TRAINED, Generate
from ray_jobs.data.bundled.judge_pairs.prompts import Layout, judge_prompt, verdict_text
from ray_jobs.data.bundled.rows import NUM_JUDGE_PAIRS
from ray_jobs.records import Message

_BRIEF_SHARE = 0.7
"""Of the tasks on the five-point scale: short prompts are learnt from several times faster."""
_THREE, _BINARY = 0.07, 0.13
_FLOW_JUDGE_SHARE = 0.08
_TALK = ("Hello!", "Hi, can you help me?", "I have a few questions.", "Thanks, next one.", "Good morning.")
_REPLIES = ("Sure, go ahead.", "Hello! What is it?", "Yes, of course.", "I'm listening.")
_SYSTEM = ("You are precise.", "Answer with the result alone.", "Be brief.", "You solve small tasks.")


@dataclass(frozen=True)
class Judged:
    """An answer as a judge gets it, with the score that it deserves. `kind`: see answers.SCORES."""

    family: str
    metric: str
    layout: Layout
    kind: str
    messages: tuple[Message, ...]
    right: str
    answer: str
    score: int

    @property
    def prompt(self) -> str:
        return judge_prompt(self.metric, self.layout, self.messages, self.right, self.answer)


def judge_pair_rows() -> Iterator[dict[str, Any]]:
    """The rows of `bundled:judge-pairs`, the families in turn; the same ones every time."""
    for number, judged in enumerate(islice(judged_answers(TRAINED, "train"), NUM_JUDGE_PAIRS)):
        scores = sorted(set(SCORES[judged.metric].values()) - {judged.score})
        yield _row(judged, Draws(f"judge:rejected:{number}").pick(scores))


def judged_answers(families: Mapping[str, Generate], seed: str) -> Iterator[Judged]:
    """Without end: the answers to a task of each family in turn, of different kinds."""
    names = list(families)
    for number in count():
        name = names[number % len(names)]
        draws = Draws(f"judge:{seed}:{name}:{number}")
        task = families[name](draws)
        messages = _conversation(draws, task.query)
        metric, layout = _asked_how(draws)
        seen: set[str] = set()
        for kinds in SLOTS[metric]:
            kind = draws.pick(kinds)
            other = families[name if draws.chance(0.6) else draws.pick(names)](draws)
            answer = answer_of(kind, draws, task, other)
            if answer not in seen:
                seen.add(answer)
                score = SCORES[metric][kind]
                yield Judged(name, metric, layout, kind, messages, task.right, answer, score)


def _asked_how(draws: Draws) -> tuple[str, Layout]:
    scale = draws.integer(0, 99) / 100
    order: Layout = "flow_judge" if draws.chance(_FLOW_JUDGE_SHARE) else "rubric_first"
    if scale < _THREE:
        return "RESPONSE_CORRECTNESS_3POINT", order
    if scale < _THREE + _BINARY:
        return "RESPONSE_CORRECTNESS_BINARY", order
    return "RESPONSE_CORRECTNESS_5POINT", "brief" if draws.chance(_BRIEF_SHARE) else order


def _conversation(draws: Draws, query: str) -> tuple[Message, ...]:
    """The query, seldom after other turns."""
    turns = [Message("user", query)]
    if draws.chance(0.08):
        turns = [Message("user", draws.pick(_TALK)), Message("assistant", draws.pick(_REPLIES)), *turns]
    if draws.chance(0.06):
        turns = [Message("system", draws.pick(_SYSTEM)), *turns]
    return tuple(turns)


def _row(judged: Judged, other_score: int) -> dict[str, Any]:
    """Columns of mlabonne/orpo-dpo-mix-40k."""
    asked = {"role": "user", "content": judged.prompt}
    return {
        "source": PREFIX + judged.family,
        "chosen": [asked, {"role": "assistant", "content": verdict_text(judged.score)}],
        "rejected": [asked, {"role": "assistant", "content": verdict_text(other_score)}],
        "prompt": asked["content"],
        "question": asked["content"],
    }
