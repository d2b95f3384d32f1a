"""Pairs to tune a judge on: deterministic, balanced, of other tasks, and in the judge's own format."""

from collections import Counter
from itertools import islice

from ray_jobs.data.bundled import families as bundled
from ray_jobs.data.bundled import words as bundled_words
from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.judge_pairs import words
from ray_jobs.data.bundled.judge_pairs.answers import SCORES
from ray_jobs.data.bundled.judge_pairs.families import FAMILIES, PREFIX, TRAINED, UNSEEN
from ray_jobs.data.bundled.judge_pairs.prompts import judge_prompt, verdict_text
from ray_jobs.data.bundled.judge_pairs.rows import judge_pair_rows, judged_answers
from ray_jobs.data.bundled.rows import bundled_rows
from ray_jobs.data.parse import parse_pair
from ray_jobs.data.settings import Columns
from ray_jobs.judging.inputs import InputMaker, JudgeItem, prompt_text
from ray_jobs.judging.metrics import load_metric
from ray_jobs.judging.parsing import parse_verdict
from ray_jobs.judging.presets import PRESETS
from ray_jobs.records import Message, Prompt

FIVE = "RESPONSE_CORRECTNESS_5POINT"
JUDGED = list(islice(judged_answers(TRAINED, "train"), 4000))
ROWS = list(islice(judge_pair_rows(), 1200))


def test_the_same_rows_come_out_every_time() -> None:
    assert list(islice(judge_pair_rows(), 200)) == ROWS[:200]


def test_rows_are_read_by_the_projects_own_parser_and_none_stands_twice() -> None:
    pairs = [parse_pair(row, Columns()) for row in ROWS]
    assert all(pair.prompt[-1].role == "user" and len(pair.prompt) == 1 for pair in pairs)
    assert len({pair.id for pair in pairs}) == len(pairs)


def test_families_and_questions_are_others_than_those_of_the_bundled_tasks() -> None:
    names = ("bundled:pairs", "bundled:prompts")
    sources = {row["source"] for name in names for row in bundled_rows(name)}
    asked = {row["prompt"] for row in bundled_rows("bundled:pairs")}
    asked |= {row["conversations"][-2]["value"] for row in bundled_rows("bundled:prompts")}
    assert not set(FAMILIES) & set(bundled.FAMILIES)
    assert not {row["source"] for row in ROWS} & sources
    assert not {judged.messages[-1].content for judged in JUDGED} & asked
    assert len(TRAINED) >= 12
    assert not set(TRAINED) & set(UNSEEN)


def test_words_are_others_than_those_of_the_bundled_tasks() -> None:
    theirs = {word.lower() for name, group in vars(bundled_words).items() if name.isupper() for word in group}
    ours = {
        word.lower()
        for group in (words.NOUNS, words.ADJECTIVES, words.VERBS, words.SURNAMES)
        for word in group
    }
    assert not ours & theirs


def test_every_family_has_its_share() -> None:
    counts = Counter(row["source"].removeprefix(PREFIX) for row in ROWS)
    assert set(counts) == set(TRAINED)
    assert max(counts.values()) < 2 * min(counts.values())


def test_no_constant_score_wins_on_any_scale() -> None:
    for metric, scores in SCORES.items():
        counts = Counter(judged.score for judged in JUDGED if judged.metric == metric)
        fair = sum(counts.values()) / len(set(scores.values()))
        assert set(counts) == set(scores.values()) == set(PRESETS[metric].scores)
        assert all(0.5 * fair < count < 1.5 * fair for count in counts.values()), (metric, counts)


def test_exact_answers_alone_get_the_highest_score() -> None:
    for judged in JUDGED:
        is_best = judged.score == max(SCORES[judged.metric].values())
        assert is_best == (judged.answer.strip() == judged.right.strip()), judged


def test_chosen_and_rejected_are_verdicts_that_the_judges_parser_reads() -> None:
    for row, judged in zip(ROWS, JUDGED, strict=False):
        scores = PRESETS[judged.metric].scores
        chosen, rejected = (
            parse_verdict(row[side][-1]["content"], scores) for side in ("chosen", "rejected")
        )
        assert chosen.score == judged.score
        assert rejected.score in set(scores) - {judged.score}
        assert row["prompt"] == judged.prompt


def test_the_prompt_is_the_one_that_a_judge_of_a_run_gets() -> None:
    for judged in [judged for judged in JUDGED if judged.layout == "rubric_first"][:50]:
        item = JudgeItem("a", Prompt("a", "s", judged.messages, judged.right), judged.answer)
        made = InputMaker(PRESETS[judged.metric], {})(item)
        assert judged.prompt == prompt_text(load_metric(judged.metric), made, "rubric_first").strip()


def test_every_layout_holds_question_reference_and_answer() -> None:
    for layout in ("rubric_first", "flow_judge", "brief"):
        text = judge_prompt(FIVE, layout, (Message("user", "Which?"),), "the reference", "the answer")
        assert "<query>\nWhich?\n</query>" in text
        assert "<reference_answer>\nthe reference\n</reference_answer>" in text
        assert "<response>\nthe answer\n</response>" in text
        assert ("<scoring_rubric>\n- Score 1" in text) == (layout != "brief")


def test_the_verdict_is_what_is_forced_without_feedback() -> None:
    assert verdict_text(4) == "<feedback>\n</feedback>\n<score>\n4\n</score>"


def test_every_family_makes_many_tasks_with_answers() -> None:
    for name, generate in FAMILIES.items():
        tasks = [generate(Draws(f"{name}:{number}")) for number in range(60)]
        assert all(task.query.strip() and task.right.strip() for task in tasks)
        assert len({task.query for task in tasks}) > 50, name
