import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from ray_jobs.cli import results
from ray_jobs.command import check_stores
from ray_jobs.config import Config, load_config
from ray_jobs.errors import ConfigError, RunConflict
from ray_jobs.export.trained import ADAPTER_FILES
from ray_jobs.locks import owned
from ray_jobs.runs import RunFolder, file_sha256, open_run
from ray_jobs.search.trials import Trial
from ray_jobs.stages import tune
from ray_jobs.stages.base import Stage, run_stages
from ray_jobs.stages.blocks import StoredBlocks, blocks_at, name_of
from ray_jobs.stages.checkpoints import prepare_search, write_note
from ray_jobs.stages.generate import actor_spec
from ray_jobs.stages.ray_storage import path_of_ray
from ray_jobs.stages.trial_table import trial_from
from serving.storage.node_cache import local_copy
from serving.storage.remote import Remote, StorageError

ROOT = Path(__file__).parents[3]


def config_of(store: str) -> Config:
    return load_config(ROOT / "configs/smoke.yaml", [f"storage={store}", f"registry={store}/registry"])


def stages(done: list[str]) -> list[Stage]:
    def first(config: Config, folder: RunFolder) -> list[str]:
        done.append("first")
        folder.path("one").mkdir(exist_ok=True)
        folder.path("one/big.gguf").write_bytes(b"big")
        return ["one/big.gguf"]

    def second(config: Config, folder: RunFolder) -> list[str]:
        done.append("second")
        return [
            folder.write("two/out.json", folder.path("one/big.gguf").read_bytes()).name and "two/out.json"
        ]

    return [
        Stage("first", ("seed",), (), ("one",), first),
        Stage("second", ("seed",), ("one/big.gguf",), ("two",), second),
    ]


def work(store: str) -> list[str]:
    """The names of the stages that had to be done, in a try on this node."""
    done: list[str] = []
    folder = open_run(store, "smoke")
    with owned(folder.root):
        run_stages(stages(done), ("first", "second"), config_of(store), folder)
    return done


def test_what_one_node_did_another_does_not_do_again(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert work(store) == ["first", "second"]
    assert work(store) == []
    monkeypatch.setenv("ORPO_CACHE", str(tmp_path / "another"))
    assert work(store) == []
    assert (Remote(store) / "smoke/two/out.json").read() == b"big"


def test_a_stage_that_died_before_it_published_is_done_again(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: RunFolder, outputs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "publish", die)
        with pytest.raises(KeyboardInterrupt):
            work(store)
    state = json.loads((Remote(store) / "smoke/state.json").read())
    assert {name: each["status"] for name, each in state.items()} == {"first": "failed"}
    assert work(store) == ["first", "second"]


def test_a_damaged_object_is_made_anew(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work(store)
    (Remote(store) / "smoke/one/big.gguf").write(b"bog")
    monkeypatch.setenv("ORPO_CACHE", str(tmp_path / "another"))
    assert work(store) == ["first", "second"]
    assert (Remote(store) / "smoke/one/big.gguf").read() == b"big"


def test_workers_are_told_uris_with_hashes(store: str) -> None:
    work(store)
    folder = open_run(store, "smoke")
    address = folder.shared("one/big.gguf")
    assert address == f"{store}/smoke/one/big.gguf#sha256={file_sha256(folder.path('one/big.gguf'))}"
    assert local_copy(address).read_bytes() == b"big"
    folder.write_json("models/base/manifest.json", {"sha256": "0" * 64})
    config = config_of(store)
    engine = config.engine.settings.model_copy(update={"backend": "llama.cpp"})
    config = config.model_copy(update={"engine": config.engine.model_copy(update={"settings": engine})})
    assert actor_spec(config, folder, "base")["model"] == f"{store}/smoke/models/base/model.gguf"
    folder.write_json("data/base.json", {"sha256": "1" * 64})
    assert tune.trial_job(config, folder)["storage"] == f"{store}/smoke/tune/trials"


def test_blocks_in_a_store(store: str) -> None:
    columns = {"id": "string"}
    blocks = blocks_at(f"{store}/unfinished")
    assert isinstance(blocks, StoredBlocks)
    assert blocks.done() == []
    blocks.write((0, 2), [{"id": "a"}, {"id": "b"}], columns)
    blocks.write((4, 5), [{"id": "c"}], columns)
    assert blocks.has((0, 2))
    assert not blocks.has((2, 4))
    assert (blocks.done(), blocks.missing(6)) == ([(0, 2), (4, 5)], [(2, 4), (5, 6)])
    assert [row["id"] for table in blocks.tables() for row in table.to_pylist()] == ["a", "b", "c"]
    (Remote(f"{store}/unfinished") / name_of((4, 5))).write(b"PAR1")
    with pytest.raises(RunConflict):
        list(blocks.tables())
    assert blocks.done() == [(0, 2)]


def test_checkpoints_that_ray_keeps_in_the_store_are_found(store: str, tmp_path: Path) -> None:
    folder = open_run(store, "r")
    part = tmp_path / "checkpoint"
    part.mkdir()
    for name in ADAPTER_FILES:
        (part / name).write_text(name)
    rows = [{"step": 5, "heldout_nll": 0.5}, {"step": 10, "heldout_nll": 0.25}]
    write_note(part, 0, rows)
    remote = Remote(store) / "r/tune/trials/t1/checkpoint_1"
    for file in part.iterdir():
        (remote / file.name).upload(file)
    metrics = {"checkpoint_path": remote.path, "step": 10}
    result = SimpleNamespace(metrics=metrics, metrics_dataframe=None, error=None, config={}, path="p")
    trial = trial_from(0, result, lambda path: path_of_ray(path, folder.root))
    assert [row["step"] for row in trial.curve] == [5, 10]
    assert trial.checkpoint == str(folder.path("tune/trials/t1/checkpoint_1"))
    tune.keep_best(trial, folder.path("tune/best"))
    assert folder.path("tune/best", ADAPTER_FILES[0]).read_text() == ADAPTER_FILES[0]
    assert isinstance(trial, Trial)


def test_a_search_without_any_state_is_removed_and_one_with_some_is_kept(store: str) -> None:
    experiment = open_run(store, "r").path("tune/experiment")
    remote = Remote(store) / "r/tune/experiment"
    (remote / "tuner.pkl").write(b"x")
    prepare_search(experiment)
    assert remote.listing() == {}
    (remote / "tuner.pkl").write(b"x")
    (remote / "experiment_state-2026.json").write(b"{}")
    prepare_search(experiment)
    assert sorted(remote.listing()) == ["experiment_state-2026.json", "tuner.pkl"]


def test_results_are_looked_at_without_the_models(store: str, tmp_path: Path) -> None:
    folder = open_run(store, "smoke")
    folder.write_json("state.json", {})
    folder.write("report/report.json", b"{}")
    folder.write("models/candidate/model.gguf", b"big")
    path = tmp_path / "run.yaml"
    path.write_text((ROOT / "configs/smoke.yaml").read_text())
    changes = [f"storage={store}"]
    found = results.find_run(path, changes)
    assert found.address == f"{store}/smoke"
    assert found.read_json("report/report.json") == {}
    assert not found.path("models/candidate/model.gguf").exists()
    assert results.find_run(path, changes, with_models=True).path("models/candidate/model.gguf").exists()
    with pytest.raises(ConfigError, match=f"{store}/other: no run folder"):
        results.find_run(path, [*changes, "name=other"])


def test_a_store_that_cannot_be_used_is_refused_before_anything_starts(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_stores(config_of(store))

    def fail(self: Remote) -> None:
        raise StorageError(f"{self.uri}: there is no such bucket")

    monkeypatch.setattr(Remote, "check", fail)
    with pytest.raises(ConfigError, match=f"^storage: {store}: there is no such bucket$"):
        check_stores(config_of(store))
    with pytest.raises(ConfigError, match=f"^storage: {store}/r: there is no such bucket$"):
        open_run(store, "r")


def test_a_folder_by_uri_is_a_folder(tmp_path: Path) -> None:
    folder = open_run(f"file://{tmp_path}/runs", "r")
    assert folder.root == tmp_path / "runs" / "r"
    assert folder.address == str(folder.root)
