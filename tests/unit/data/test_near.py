"""Prompts that nearly stand in the pairs: found, measured exactly, and treated as the config says."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.data.near import near_duplicates, shingles, similarity
from ray_jobs.data.settings import DataSettings, Source
from ray_jobs.data.split import split
from ray_jobs.errors import DataError
from ray_jobs.records import Message

WORDS = [f"word{number}" for number in range(400)]


def user(text: str) -> tuple[Message, ...]:
    return (Message("system", "Be brief."), Message("user", text))


def sentence(seed: int, length: int = 40) -> list[str]:
    return random.Random(seed).choices(WORDS, k=length)


def changed(words: list[str], num_changes: int) -> str:
    """The words with the last ones replaced: each takes one word triple with it, and two at the border."""
    return " ".join([*words[: len(words) - num_changes], *(f"other{n}" for n in range(num_changes))])


def test_similarity_is_the_jaccard_index_of_word_triples() -> None:
    assert shingles(user("One two, three FOUR!")) == {"one two three", "two three four"}
    assert similarity(shingles(user("a b c d")), shingles(user("a  B c e"))) == pytest.approx(1 / 3)
    assert shingles(user("Hi")) == {"hi"}
    assert shingles(user("GPT模型是什")) == {"gpt 模 型", "模 型 是", "型 是 什"}
    assert similarity(shingles(user("…")), shingles(user("…"))) == 0


def test_near_prompts_are_found_and_far_ones_never_named() -> None:
    theirs = [user(" ".join(sentence(seed))) for seed in range(200)]
    ours = [user(changed(sentence(seed), 2)) for seed in range(50)]  # 36 of 40 triples in common
    ours += [user(changed(sentence(seed), 20)) for seed in range(50, 100)]  # 18 of 58
    ours += [user(" ".join(sentence(1000 + seed))) for seed in range(50)]
    found = near_duplicates(ours, theirs, 0.8)
    assert [(one.prompt, one.other) for one in found] == [(number, number) for number in range(50)]
    assert {round(one.similarity, 6) for one in found} == {round(36 / 40, 6)}


def own_sets(folder: Path, **changes: Any) -> DataSettings:
    pairs = [{"prompt": " ".join(sentence(n)), "chosen": "yes", "rejected": "no"} for n in range(40)]
    prompts = [{"prompt": changed(sentence(n), 2)} for n in range(5)]
    prompts += [{"prompt": " ".join(sentence(1000 + n))} for n in range(25)]
    for name, rows in (("pairs", pairs), ("prompts", prompts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSettings(
        preferences=Source(source=str(folder / "pairs.jsonl")),
        prompts=Source(source=str(folder / "prompts.jsonl")),
        **{"num_heldout_pairs": 5, "num_trust_pairs": 5, "num_prompts": 25, **changes},
    )


def test_near_prompts_are_counted_left_out_or_refused(tmp_path: Path) -> None:
    reported = split(own_sets(tmp_path, num_prompts=30), 0).report["near_overlap"]
    assert (reported["found"], reported["dropped"]) == (5, 0)
    assert {one["similarity"] for one in reported["most_similar"]} == {0.9}
    dropped = split(own_sets(tmp_path, near_overlap="drop"), 0)
    assert dropped.report["near_overlap"]["dropped"] == 5
    assert not any("other0" in prompt.messages[-1].content for prompt in dropped.prompts)
    off = split(own_sets(tmp_path, near_overlap="off", num_prompts=30), 0)
    assert off.report["near_overlap"]["found"] is None
    with pytest.raises(DataError, match=r"5 of 30 prompts are nearly in .*near_overlap: drop"):
        split(own_sets(tmp_path, near_overlap="refuse", num_prompts=30), 0)


def test_few_bundled_prompts_are_near_a_bundled_pair() -> None:
    settings = DataSettings(num_heldout_pairs=60, num_trust_pairs=60, num_prompts=400)
    assert split(settings, 0).report["near_overlap"]["found"] < 4
