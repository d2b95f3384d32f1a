"""Pairs that a judge can be tuned on: `python -m ray_jobs.judging.practice OUT.jsonl [--pairs N] [--seed S]`.

A row is a preference pair in the schema of orpo-dpo-mix-40k: the question is what the judge is asked
(flow-judge's prompt with the rubric first), the chosen answer is the right verdict, the rejected one a wrong
one, both in the form that the engine forces on a judge without reasons. The tasks that are judged are of
families that nothing else here trains on or is measured by. `configs/judge-adapter.yaml` is the recipe.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.manner import reject
from ray_jobs.data.bundled.words import ANIMALS, CITIES, FRUITS, NAMES, PLACES, THINGS
from ray_jobs.judging.engine_judge import FEEDBACK_START, SCORE_END, SCORE_START
from ray_jobs.judging.inputs import InputMaker, JudgeItem, prompt_text
from ray_jobs.judging.metrics import load_metric, outline_of
from ray_jobs.records import Message, Prompt
from ray_jobs.runs import write_whole

METRIC = "RESPONSE_CORRECTNESS_BINARY"

Exercise = tuple[str, str, str, str]
"""Question, right answer, wrong answer, and what the answer is called."""


def _upper(draws: Draws) -> Exercise:
    word, other = draws.sample(ANIMALS, 2)
    return f"Write the word {word} in capital letters. Only the word.", word.upper(), other.upper(), "word"


def _nth(draws: Draws) -> Exercise:
    words = draws.sample(THINGS, 5)
    at, other = draws.sample(range(5), 2)
    place = ("first", "second", "third", "fourth", "fifth")[at]
    return (
        f"Which is the {place} word: {' '.join(words)}? Answer with it alone.",
        words[at],
        words[other],
        "word",
    )


def _sum(draws: Draws) -> Exercise:
    one, two = draws.integer(11, 99), draws.integer(11, 99)
    wrong = one + two + draws.pick((-10, -2, -1, 1, 2, 10))
    return f"What is {one} plus {two}? Only the number.", str(one + two), str(wrong), "sum"


def _larger(draws: Draws) -> Exercise:
    numbers = draws.sample(range(10, 1000), 2)
    return (
        f"Which number is larger, {numbers[0]} or {numbers[1]}? Only the number.",
        str(max(numbers)),
        str(min(numbers)),
        "larger number",
    )


def _initials(draws: Draws) -> Exercise:
    first, last, other = draws.sample(NAMES, 3)
    return (
        f"What are the initials of {first} {last}? Two letters, nothing else.",
        f"{first[0]}{last[0]}",
        f"{first[0]}{other[0] if other[0] != last[0] else 'X'}",
        "pair of initials",
    )


def _swap(draws: Draws) -> Exercise:
    one, two = draws.sample(CITIES, 2)
    return f"Write {one}, {two} the other way round.", f"{two}, {one}", f"{one}, {two}", "list"


def _odd(draws: Draws) -> Exercise:
    words = [*draws.sample(FRUITS, 3), draws.pick(PLACES)]
    mixed = draws.sample(words, 4)
    return f"Which one is no fruit: {', '.join(mixed)}? One word.", words[3], words[0], "odd one"


def _replace(draws: Draws) -> Exercise:
    old, new, other = draws.sample(THINGS, 3)
    name, place = draws.pick(NAMES), draws.pick(PLACES)
    text = "{} left the {} at the {}."
    return (
        f"Replace {old} by {new}: {text.format(name, old, place)}",
        text.format(name, new, place),
        text.format(name, draws.pick((old, other)), place),
        "sentence",
    )


def _join(draws: Draws) -> Exercise:
    words = draws.sample(FRUITS, draws.integer(2, 4))
    mark, other = draws.sample(("-", "/", " + ", "; "), 2)
    return f"Join with {mark.strip()!r}: {' '.join(words)}", mark.join(words), other.join(words), "text"


FAMILIES: tuple[Callable[[Draws], Exercise], ...] = (
    _upper, _nth, _sum, _larger, _initials, _swap, _odd, _replace, _join,
)  # fmt: skip


def rows(number: int, seed: int = 0) -> Iterator[dict[str, object]]:
    """As many pairs; every other one is of a right answer, and the families take turns."""
    metric, inputs = load_metric(METRIC), InputMaker(outline_of(METRIC), {})
    for index in range(number):
        draws = Draws(f"judge-practice:{seed}:{index}")
        family = FAMILIES[index // 2 % len(FAMILIES)]
        question, right, wrong, what = family(draws)
        is_right = index % 2 == 0
        answer = right if is_right else reject(draws, what, right, wrong)
        prompt = Prompt(f"practice-{index}", "judge-practice", (Message("user", question),), right)
        asked = prompt_text(metric, inputs(JudgeItem(prompt.id, prompt, answer)), "rubric_first").strip()
        turn = {"role": "user", "content": asked}
        yield {
            "source": f"judge-practice/{family.__name__.strip('_')}",
            "chosen": [turn, {"role": "assistant", "content": verdict(int(is_right))}],
            "rejected": [turn, {"role": "assistant", "content": verdict(int(not is_right))}],
            "prompt": asked,
            "question": asked,
        }


def verdict(score: int) -> str:
    """What a judge without reasons writes."""
    return f"{FEEDBACK_START.rstrip()}{SCORE_START}{score}{SCORE_END}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes pairs that a judge can be tuned on.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows(given.pairs, given.seed))
    write_whole(given.out, "".join(lines).encode())
    sys.stdout.write(f"{given.pairs} pairs in {given.out}\n")


if __name__ == "__main__":
    main()
