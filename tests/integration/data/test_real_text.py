"""The loading of real data sets, on real text in the schemas of the reference run's data sets."""

import json
import os
import shutil
from pathlib import Path

import pytest

from ray_jobs.data.load import load_pairs, load_prompts
from ray_jobs.data.settings import DataSettings, Source
from ray_jobs.data.split import split
from ray_jobs.errors import DataError

REAL = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
pytestmark = pytest.mark.skipif(not (REAL / "preferences.jsonl").is_file(), reason="no real text here")


def real(**changes: object) -> DataSettings:
    return DataSettings(
        preferences=Source(source=str(REAL / "preferences.jsonl")),
        prompts=Source(source=str(REAL / "conversations.jsonl")),
        **{"num_heldout_pairs": 100, "num_trust_pairs": 50, "num_prompts": 20, **changes},  # type: ignore[arg-type]
    )


def test_every_real_row_is_used_or_accounted_for() -> None:
    pairs = load_pairs(Source(source=str(REAL / "preferences.jsonl")), 0)
    prompts = load_prompts(Source(source=str(REAL / "conversations.jsonl")), 0)
    for loaded, name in ((pairs, "preferences.jsonl"), (prompts, "conversations.jsonl")):
        num_lines = len((REAL / name).read_text().splitlines())
        assert loaded.num_rows_in == len(loaded.rows) + len(loaded.quarantined) == num_lines
        assert len(loaded.rows) >= 0.95 * num_lines
        assert set(loaded.reasons) <= {"duplicate", "identical"}
    first = json.loads((REAL / "preferences.jsonl").read_text().splitlines()[0])
    assert pairs.rows[0].prompt[-1].content == first["prompt"]
    assert pairs.rows[0].chosen == first["chosen"][-1]["content"]
    assert all(prompt.reference for prompt in prompts.rows)


def as_transcript(turns: list[dict[str, str]]) -> str:
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in turns)


def test_real_pairs_are_the_same_as_transcripts(tmp_path: Path) -> None:
    """As Anthropic/hh-rlhf has them; many answers to one prompt begin alike."""
    rows = [json.loads(line) for line in (REAL / "preferences.jsonl").read_text().splitlines()]
    path = tmp_path / "transcripts.jsonl"
    texts = ({side: as_transcript(row[side]) for side in ("chosen", "rejected")} for row in rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))
    pairs = load_pairs(Source(source=str(REAL / "preferences.jsonl")), 0)
    read = load_pairs(Source(source=str(path)), 0)
    assert [(pair.prompt[-1].content, pair.chosen.strip()) for pair in read.rows] == [
        (pair.prompt[-1].content.strip(), pair.chosen.strip()) for pair in pairs.rows
    ]


def test_real_answers_alone_are_not_taken_for_prompts(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (REAL / "preferences.jsonl").read_text().splitlines()]
    path = tmp_path / "answers.jsonl"
    sides = ({side: row[side][-1]["content"] for side in ("chosen", "rejected")} for row in rows)
    path.write_text("".join(json.dumps({"query": "?", **row}) + "\n" for row in sides))
    with pytest.raises(DataError, match="column 'query' may hold the prompt; name it with columns"):
        load_pairs(Source(source=str(path)), 0)


def test_real_sets_on_the_same_instructions_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"of \d+ prompts stand in .*preferences.jsonl too \(first: row \d+\)"
    ):
        split(real(), 0)


def test_few_pairs_leave_instructions_to_compare_on() -> None:
    splits = split(real(overlap="drop", num_train_pairs=300), 0)
    assert (len(splits.train), len(splits.prompts)) == (300, 20)
    paired = {pair.prompt for pair in (*splits.train, *splits.heldout, *splits.trust)}
    assert not {prompt.messages for prompt in splits.prompts} & paired


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_hub_library_reads_the_same_rows_as_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool, suffix: str
) -> None:
    """`load_dataset` takes a folder where it takes a hub id, so the hub's code path runs without a hub."""
    import datasets

    from ray_jobs.data.hub import hub_rows

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    if suffix == "jsonl":
        shutil.copy(REAL / "preferences.jsonl", folder / "train.jsonl")
    else:
        import pyarrow.json
        import pyarrow.parquet

        pyarrow.parquet.write_table(
            pyarrow.json.read_json(REAL / "preferences.jsonl"), folder / "train-00000-of-00001.parquet"
        )
    rows = [raw.value for raw in hub_rows(Source(source=str(folder), streaming=streaming))]
    expected = [json.loads(line) for line in (REAL / "preferences.jsonl").read_text().splitlines()]
    assert rows == expected
