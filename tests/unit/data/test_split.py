"""Splits: disjoint, repeatable, of the wished sizes, and refused where that cannot be."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ray_jobs.data.overlap import leak_key
from ray_jobs.data.report import spread
from ray_jobs.data.settings import DataSettings, Source
from ray_jobs.data.split import Splits, divide_pairs, plan, split
from ray_jobs.errors import DataError
from ray_jobs.records import Message, Pair

SMALL = DataSettings(num_heldout_pairs=60, num_trust_pairs=60, num_prompts=160)


def keys(splits: Splits) -> list[set[str]]:
    pairs = [
        {leak_key(pair.prompt) for pair in rows} for rows in (splits.train, splits.heldout, splits.trust)
    ]
    return [*pairs, {leak_key(prompt.messages) for prompt in splits.prompts}]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def own_sets(folder: Path, num_shared: int, **changes: Any) -> DataSettings:
    """40 pairs and 30 prompts, of which some stand in the pairs too, in other capitals and spacing."""
    pairs = [{"prompt": f"Question {n}?", "chosen": "yes", "rejected": "no"} for n in range(40)]
    shared = [{"prompt": f" question  {n}? "} for n in range(num_shared)]
    prompts = [{"prompt": f"Other {n}"} for n in range(30 - num_shared)] + shared
    return DataSettings(
        preferences=Source(source=write(folder / "pairs.jsonl", pairs)),
        prompts=Source(source=write(folder / "prompts.jsonl", prompts)),
        **{"num_heldout_pairs": 5, "num_trust_pairs": 5, "num_prompts": 20, **changes},
    )


def test_bundled_splits_are_disjoint_and_of_the_wished_sizes() -> None:
    splits = split(SMALL, 0)
    assert (len(splits.heldout), len(splits.trust), len(splits.prompts)) == (60, 60, 160)
    assert len(splits.train) == splits.report["preferences"]["rows_used"] - 120
    sets = keys(splits)
    assert len(set.union(*sets)) == sum(len(part) for part in sets)


def test_splits_repeat_and_follow_the_seed() -> None:
    first, again, other = split(SMALL, 3), split(SMALL, 3), split(SMALL, 4)
    assert (first.train, first.prompts, first.report) == (again.train, again.prompts, again.report)
    assert {pair.id for pair in first.heldout} != {pair.id for pair in other.heldout}
    assert {prompt.id for prompt in first.prompts} != {prompt.id for prompt in other.prompts}


def test_num_train_pairs_limits_the_training() -> None:
    assert len(split(SMALL.model_copy(update={"num_train_pairs": 100}), 0).train) == 100


def test_the_report_is_plain_json_and_its_numbers_add_up() -> None:
    report = json.loads(json.dumps(split(SMALL, 0).report))
    for part in (report["preferences"], report["prompts"]):
        unused = part["rows_quarantined"] + part["rows_excluded"] + part["rows_sampled_out"]
        assert part["rows_in"] == part["rows_used"] + unused
        assert sum(part["by_source"].values()) == part["rows_used"]
        assert len(part["fingerprint"]) == 64
        for lengths in part["characters"].values():
            assert 0 < lengths["p50"] <= lengths["p95"] <= lengths["max"]
    assert {name: part["rows"] for name, part in report["splits"].items()} == {
        "train": report["preferences"]["rows_used"] - 120,
        "heldout": 60,
        "trust": 60,
        "prompts": 160,
    }


def test_the_report_counts_quarantine_and_exclusion(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{n}", "chosen": "a", "rejected": "b", "source": "ok"} for n in range(20)]
    rows += [{**rows[0]}, {**rows[1], "chosen": ""}, {**rows[2], "source": "toxic"}]
    settings = DataSettings(
        preferences=Source(source=write(tmp_path / "p.jsonl", rows), exclude_sources=("toxic",)),
        num_heldout_pairs=5,
        num_trust_pairs=5,
        num_prompts=10,
    )
    report = split(settings, 0).report["preferences"]
    assert report["quarantined"] == {"duplicate": 1, "empty_chosen": 1}
    assert report["excluded"] == {"toxic": 1}
    assert report["first_quarantined"] == [
        {"row": 21, "reason": "duplicate", "source": "ok"},
        {"row": 22, "reason": "empty_chosen", "source": "ok"},
    ]
    assert (report["rows_in"], report["rows_used"]) == (23, 20)


def test_shared_prompts_are_refused_by_number_and_first_row(tmp_path: Path) -> None:
    settings = own_sets(tmp_path, num_shared=3)
    with pytest.raises(DataError) as caught:
        split(settings, 0)
    assert "3 of 30 prompts stand in" in str(caught.value)
    assert "(first: row 28)" in str(caught.value)
    assert str(caught.value).startswith(settings.prompts.source)


def test_shared_prompts_may_be_dropped(tmp_path: Path) -> None:
    splits = split(own_sets(tmp_path, num_shared=3, overlap="drop"), 0)
    assert splits.report["overlap"] == {"dropped_prompts": 3, "repeated_prompts": 0}
    assert all(prompt.messages[0].content.startswith("Other") for prompt in splits.prompts)


def test_prompts_of_unused_pairs_are_free(tmp_path: Path) -> None:
    splits = split(own_sets(tmp_path, num_shared=3, overlap="drop", num_train_pairs=1), 0)
    assert splits.report["overlap"]["dropped_prompts"] <= 3
    assert not keys(splits)[3] & set().union(*keys(splits)[:3])


def test_a_repeated_prompt_is_asked_once(tmp_path: Path) -> None:
    rows = [{"prompt": "Same", "answer": str(n)} for n in range(3)] + [{"prompt": "Other"}]
    source = Source.model_validate(
        {"source": write(tmp_path / "q.jsonl", rows), "columns": {"answer": "answer"}}
    )
    splits = split(SMALL.model_copy(update={"prompts": source, "num_prompts": 2}), 0)
    assert splits.report["overlap"] == {"dropped_prompts": 0, "repeated_prompts": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_heldout_pairs": 50},
            "40 usable pairs on 40 prompts are too few: data.num_heldout_pairs takes 50",
        ),
        ({"num_trust_pairs": 36}, "data.num_trust_pairs takes 36 and finds 35"),
        ({"num_trust_pairs": 35}, "data.num_train_pairs takes 1 and finds 0"),
        ({"num_train_pairs": 31}, "data.num_train_pairs takes 31 and finds 30"),
        (
            {"num_prompts": 31},
            "30 usable prompts that stand in no pair are too few: data.num_prompts takes 31",
        ),
    ],
)
def test_too_few_rows_are_refused_with_the_numbers(
    tmp_path: Path, changes: dict[str, int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        split(own_sets(tmp_path, num_shared=0, **changes), 0)


@settings(max_examples=50, deadline=None)
@given(prompts=st.lists(st.integers(0, 12), min_size=8, max_size=40), seed=st.integers(0, 99))
def test_pairs_of_one_prompt_never_part(prompts: list[int], seed: int) -> None:
    pairs = [
        Pair(str(at), "", (Message("user", f"Q{number}"),), f"a{at}", "b")
        for at, number in enumerate(prompts)
    ]
    wanted = DataSettings(num_heldout_pairs=2, num_trust_pairs=2)
    try:
        parts = divide_pairs(pairs, wanted, seed)
    except DataError:
        assert len(set(prompts)) < 5
        return
    assert [len(part) for part in parts[:2]] == [2, 2]
    seen = [{pair.prompt for pair in part} for part in parts]
    assert len({prompt for part in seen for prompt in part}) == sum(len(part) for part in seen)
    assert divide_pairs(pairs[::-1], wanted, seed)[0][0].prompt in seen[0]


def test_keys_ignore_capitals_spacing_form_and_system_turns() -> None:
    key = leak_key([Message("user", "Héllo  World")])
    assert key == leak_key([Message("system", "x"), Message("user", " he\u0301llo\nWORLD ")])
    assert key != leak_key([Message("user", "Hello World")])
    assert key != leak_key([Message("assistant", "Héllo  World")])
    assert leak_key([Message("user", "ab"), Message("user", "c")]) != leak_key([Message("user", "abc")])


def test_spread_is_by_nearest_rank() -> None:
    assert spread(range(1, 101)) == {"p50": 50, "p95": 95, "max": 100}
    assert spread([7]) == {"p50": 7, "p95": 7, "max": 7}
    assert spread([]) == {}


def test_the_plan_says_what_will_be_read(tmp_path: Path) -> None:
    settings = own_sets(tmp_path, num_shared=0)
    hub = Source(source="mlabonne/FineTome-100k", revision="abc", streaming=True, max_rows=10)
    text = plan(settings.model_copy(update={"prompts": hub}))
    assert text["preferences"] == f"{settings.preferences.source}: local file of 40 rows"
    assert text["prompts"] == (
        "mlabonne/FineTome-100k: split train, streamed from the hub at abc, at most 10 used"
    )
    assert "rows, made by this project" in str(plan(SMALL)["prompts"])
    with pytest.raises(DataError, match="no such file"):
        plan(settings.model_copy(update={"prompts": Source(source="no/such.jsonl")}))


def test_the_plan_loads_no_library_of_data_sets() -> None:
    code = (
        "import sys; from ray_jobs.data.split import plan; from ray_jobs.data.settings import DataSettings; "
        "import ray_jobs.data.checks; plan(DataSettings()); "
        "print([m for m in ('datasets', 'pyarrow', 'pandas', 'fsspec', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("bundled:pairs", "bundled"),
        ("mlabonne/orpo-dpo-mix-40k", "hub"),
        ("squad", "hub"),
        ("data/pairs.jsonl", "file"),
        ("pairs.jsonl.gz", "file"),
        ("data/*.parquet", "file"),
        ("s3://bucket/pairs.parquet", "file"),
        ("/no/such/folder", "file"),
        ("tests", "file"),
    ],
)
def test_what_a_source_names(source: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    assert Source(source=source).kind == kind


def test_settings_refuse_what_cannot_be() -> None:
    for data in ({"source": "bundled:pears"}, {"source": ""}, {"source": "x", "max_rows": 0}, {"sorce": "x"}):
        with pytest.raises(ValidationError):
            Source.model_validate(data)
    strict = '{"source": "a/b", "exclude_sources": ["toxic-dpo-v0.2"], "columns": {"prompt": "q"}}'
    assert Source.model_validate_json(strict).exclude_sources == ("toxic-dpo-v0.2",)
