"""The hub's code path without a hub: a folder stands in for a data set, and what goes wrong is one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ray_jobs.data.bundled.rows import NUM_ROWS, bundled_rows
from ray_jobs.data.hub import hub_rows
from ray_jobs.data.load import load_pairs, load_prompts
from ray_jobs.data.settings import Source
from ray_jobs.errors import DataError


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The bundled data sets as folders, which `load_dataset` takes where it takes a hub id."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(Source, "kind", property(lambda _: "hub"))
    for name in ("pairs", "prompts"):
        (tmp_path / name).mkdir()
        rows = [json.dumps(row) for row in bundled_rows(f"bundled:{name}")]
        (tmp_path / name / "train.jsonl").write_text("\n".join(rows) + "\n")
    return {name: tmp_path / name for name in ("pairs", "prompts")}


@pytest.mark.parametrize("streaming", [False, True])
def test_the_hub_gives_the_rows_that_the_project_wrote(folders: dict[str, Path], streaming: bool) -> None:
    pairs = load_pairs(Source(source=str(folders["pairs"]), streaming=streaming), 0)
    prompts = load_prompts(Source(source=str(folders["prompts"]), streaming=streaming), 0)
    assert len(pairs.rows) == pairs.num_rows_in == NUM_ROWS["bundled:pairs"]
    assert len(prompts.rows) == prompts.num_rows_in == NUM_ROWS["bundled:prompts"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Source, "kind", "bundled")
        assert pairs.fingerprint == load_pairs(Source(source="bundled:pairs"), 0).fingerprint
        assert prompts.fingerprint == load_prompts(Source(source="bundled:prompts"), 0).fingerprint


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_of_several_configurations_is_read_by_name(
    folders: dict[str, Path], streaming: bool
) -> None:
    folder = folders["pairs"].parent
    names = "".join(f"- config_name: {name}\n  data_files: {name}/train.jsonl\n" for name in folders)
    (folder / "README.md").write_text(f"---\nconfigs:\n{names}---\n")
    source = Source(source=str(folder), config="pairs", streaming=streaming)
    assert load_pairs(source, 0).num_rows_in == NUM_ROWS["bundled:pairs"]
    for config, says in (
        (None, "has several configurations; choose one with `config`: pairs, prompts"),
        ("main", "has no configuration 'main'; there are pairs, prompts"),
    ):
        with pytest.raises(DataError) as caught:
            load_pairs(source.model_copy(update={"config": config}), 0)
        assert str(caught.value) == f"{folder}: {says}"


def test_a_split_that_is_not_there_is_named(folders: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="validation") as caught:
        load_pairs(Source(source=str(folders["pairs"]), split="validation"), 0)
    assert "\n" not in str(caught.value)


def test_a_folder_without_data_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be loaded from the hub"):
        list(hub_rows(Source(source=str(tmp_path))))


@pytest.mark.parametrize("streaming", [False, True])
def test_files_that_do_not_fit_together_are_one_clear_line(folders: dict[str, Path], streaming: bool) -> None:
    (folders["prompts"] / "train.jsonl").rename(folders["pairs"] / "train-2.jsonl")
    with pytest.raises(DataError, match="cannot be loaded from the hub") as caught:
        load_pairs(Source(source=str(folders["pairs"]), streaming=streaming), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_no_hub_is_one_clear_line(tmp_path: Path, streaming: bool) -> None:
    code = (
        "from ray_jobs.data.load import load_pairs; from ray_jobs.data.settings import Source; "
        f"load_pairs(Source(source='mlabonne/orpo-dpo-mix-40k', revision='abc', streaming={streaming}), 0)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "ray_jobs.errors.DataError: mlabonne/orpo-dpo-mix-40k: no such file here, and the hub cannot be "
    )
