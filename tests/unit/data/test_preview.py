"""What --check says of one's own data before anything starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import preview
from ray_jobs.config import Config, load_config
from ray_jobs.errors import DataError
from ray_jobs.preview import data_lines

CONFIG = Path(__file__).parents[3] / "configs" / "own-data.yaml"
ROOT = CONFIG.parents[1]


def pair(number: int, **changes: Any) -> dict[str, Any]:
    return {"asked": f"What is {number}?", "chosen": "a", "rejected": "b", "note": "x"} | changes


def config_of(folder: Path, pairs: list[Any], *changes: str, name: str = "pairs.jsonl") -> Config:
    rows = "".join(json.dumps(row) + "\n" for row in pairs)
    (folder / name).write_text(json.dumps(pairs) if name.endswith(".json") else rows)
    prompts = "".join(json.dumps({"prompt": f"Name {number}."}) + "\n" for number in range(50))
    (folder / "prompts.jsonl").write_text(prompts)
    return load_config(
        CONFIG,
        [
            f"data.preferences={{source: {folder / name}, columns: {{prompt: asked}}}}",
            f"data.prompts.source={folder / 'prompts.jsonl'}",
            f"judge.metrics=[{ROOT / 'configs/metrics/instruction-following.yaml'}]",
            *changes,
        ],
    )


@pytest.fixture
def small_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "MAX_BYTES_READ", 3000)
    monkeypatch.setattr(preview, "MAX_ROWS_READ", 10)


def test_it_tells_what_was_read_as_what_and_the_first_rows(tmp_path: Path) -> None:
    found = list(data_lines(config_of(tmp_path, [pair(n) for n in range(60)])))
    assert found == [
        "usable: 60 of 60 pairs; 20 to train on",
        "usable: 50 of 50 prompts",
        "pairs: columns used: asked -> prompt, chosen, rejected; not used: note",
        'first pair, user: "What is 0?"',
        'first pair, chosen: "a"',
        'first pair, rejected: "b"',
        "prompts: columns used: prompt",
        'first prompt, user: "Name 0."',
    ]


def test_the_first_bad_row_is_told_with_what_to_do(tmp_path: Path) -> None:
    tool = [{"role": "tool", "content": "4"}, {"role": "assistant", "content": "a"}]
    rows = [pair(n, chosen=tool if n % 3 == 1 else "a") for n in range(90)]
    rows[5]["rejected"] = ""
    rows[6] = pair(6, chosen="What is 6? A number.", rejected="What is 6? A colour.")
    found = list(data_lines(config_of(tmp_path, rows)))
    assert found[0] == "usable: 59 of 90 pairs (not: 30 has_tools, 1 empty_rejected); 19 to train on"
    assert found[2:4] == [
        "in 1 rows both answers began with the prompt: it was cut off",
        f"first of the pairs not used: {tmp_path}/pairs.jsonl line 2: has_tools 'tool' (column 'chosen'); "
        "rows that offer tools or call them are not supported",
    ]


def test_of_a_large_file_the_first_rows_are_read(tmp_path: Path, small_look: None) -> None:
    rows = [pair(n, chosen="" if n == 3 else "a") for n in range(100)]
    found = list(data_lines(config_of(tmp_path, rows)))
    assert found[:2] == [
        "usable: 9 of 10 pairs (not: 1 empty_chosen); the first 10 rows, the rest was not read",
        f"first of the pairs not used: {tmp_path}/pairs.jsonl line 4: empty_chosen",
    ]
    assert "usable: 50 of 50 prompts" in found


def test_what_the_first_rows_of_a_large_file_lack_is_an_error(tmp_path: Path, small_look: None) -> None:
    rows = [{"asked": f"What is {n}?", "good": "a", "rejected": "b"} for n in range(100)]
    with pytest.raises(DataError, match=r"line 1: column .chosen. is missing; .*columns\.chosen"):
        list(data_lines(config_of(tmp_path, rows)))


def test_what_only_later_rows_have_is_no_error(tmp_path: Path, small_look: None) -> None:
    rows = [pair(n, source="a" if n < 50 else "b") for n in range(100)]
    source = "data.preferences.exclude_sources=[b]"
    assert "the rest was not read" in next(data_lines(config_of(tmp_path, rows, source)))
    source = "data.preferences.exclude_sources=[a]"
    says = "usable: 0 of 10 pairs (not: 10 of excluded sources); the first 10 rows, the rest was not read"
    assert next(data_lines(config_of(tmp_path, rows, source))) == says


def test_a_large_document_is_not_read_and_that_is_said(
    tmp_path: Path, small_look: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [pair(n) for n in range(100)]
    found = next(data_lines(config_of(tmp_path, rows, name="pairs.json")))
    assert found == "usable: 10 of 10 pairs; the first 10 rows, the rest was not read"
    monkeypatch.setattr(preview, "MAX_DOCUMENT_BYTES", 3000)
    found = next(data_lines(config_of(tmp_path, rows, name="pairs.json")))
    assert found == f"{tmp_path}/pairs.json: a single JSON document, not read for a look; JSON lines are"


def test_of_the_projects_own_data_the_numbers_are_told_alone() -> None:
    assert len(list(data_lines(load_config(ROOT / "configs" / "smoke.yaml")))) == 2
