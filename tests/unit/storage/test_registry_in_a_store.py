"""A registry that several nodes share through a store: each has its own ORPO_CACHE here."""

import hashlib
import json
from pathlib import Path

import pytest

from ray_jobs.runs import open_run
from serving import names
from serving.host import ModelHost
from serving.kept_models import model_here
from serving.registry import BaseModel, Registry, RegistryError
from serving.settings import ServingSettings
from serving.shadow_files import append
from serving.sizing import completed
from serving.storage import mirror
from serving.storage.remote import Remote, StorageError


def model(folder: Path, content: bytes) -> tuple[Path, str]:
    path = folder / f"{content.decode()}.gguf"
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


def promote(address: str, folder: Path, content: bytes) -> str:
    path, sha256 = model(folder, content)
    base = BaseModel(*model(folder, b"base"))
    Registry.at(address).promote(
        path, sha256=sha256, run="r", report=folder / "report.json", base=base, expected=b"said"
    )
    return sha256


def other_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORPO_CACHE", str(tmp_path / "another"))


def test_another_node_sees_the_champion_and_fetches_it(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = promote(store, tmp_path, b"one")
    other_node(monkeypatch, tmp_path)
    registry = Registry.at(store)
    champion = registry.champion()
    assert champion is not None
    assert champion.base is not None
    assert champion.sha256 == first
    assert not champion.model.exists()
    assert model_here(champion.model, first).read_bytes() == b"one"
    assert model_here(champion.base.model, champion.base.sha256).read_bytes() == b"base"
    assert model_here(champion.model, first).is_relative_to(tmp_path / "another" / "objects")
    assert json.loads((Remote(store) / "champion.json").read())["model"] == f"models/{first}/model.gguf"
    assert (Remote(store) / f"models/{first}/expected.json").read() == b"said"


def test_a_replica_follows_what_is_decided_elsewhere(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = promote(store, tmp_path, b"one")
    registry = Registry.at(store)
    assert names.entries(registry.history())[0].name == "champion"
    with monkeypatch.context() as node:
        other_node(node, tmp_path)
        second = promote(store, tmp_path, b"two")
    assert registry.champion().sha256 == first  # type: ignore[union-attr]
    registry.renew()
    assert [each.sha256 for each in registry.history()] == [second, first]
    assert names.find(registry.history(), f"r@{first[:8]}").sha256 == first
    with monkeypatch.context() as node:
        other_node(node, tmp_path)
        Registry.at(store).rollback(only_from=second, reason="worse")
    registry.renew()
    assert [each.sha256 for each in registry.history()] == [first]
    assert [(row["from"], row["reason"]) for row in registry.rollbacks()] == [(second, "worse")]


def test_the_host_loads_the_fetched_file_with_what_it_said(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(store, tmp_path, b"one")
    other_node(monkeypatch, tmp_path)
    opened: list[bytes] = []
    checked: list[bytes] = []

    class Engine:
        def __init__(self, path: Path, *_: object) -> None:
            opened.append(path.read_bytes())

        def close(self) -> None:
            pass

    monkeypatch.setattr("serving.loading.smoke", lambda engine: None)
    monkeypatch.setattr("serving.loading.check", lambda engine, path: checked.append(path.read_bytes()))
    settings = completed(ServingSettings(registry=store)).engine
    assert settings is not None
    host = ModelHost(
        Registry.at(store), settings.model_copy(update={"pin": False}), open_engine=Engine  # type: ignore[arg-type]
    )  # fmt: skip
    assert host.follow()
    host.close()
    assert (opened, checked) == ([b"one"], [b"said"])


def test_a_damaged_model_in_the_store_is_refused(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = promote(store, tmp_path, b"one")
    (Remote(store) / f"models/{sha256}/model.gguf").write(b"ohe")
    champion = Registry.at(store).champion()
    assert champion is not None
    with pytest.raises(RegistryError, match=rf"{store}/models/{sha256}/model.gguf: sha256 is \w+…, expected"):
        model_here(champion.model, sha256)
    (Remote(store) / f"models/{sha256}/model.gguf").remove()
    with pytest.raises(RegistryError, match="the model file is missing"):
        model_here(champion.model, sha256)


def test_a_wrong_file_is_not_promoted_and_the_old_champion_stays(store: str, tmp_path: Path) -> None:
    first = promote(store, tmp_path, b"one")
    with pytest.raises(RegistryError, match=r"sha256 is \w+…, expected"):
        Registry.at(store).promote(model(tmp_path, b"x")[0], sha256="0" * 64, run="x", report=tmp_path)
    assert Registry.at(store).champion().sha256 == first  # type: ignore[union-attr]
    assert not [name for name in Remote(store).listing() if "0" * 64 in name or name.startswith("owners/")]


def test_the_report_of_a_run_in_a_store_is_told_by_its_uri(store: str, tmp_path: Path) -> None:
    run = open_run(store, "r")
    path, sha256 = run.write("models/candidate/model.gguf", b"m"), hashlib.sha256(b"m").hexdigest()
    registry = Registry.at(f"{store}/registry")
    registry.promote(path, sha256=sha256, run="r", report=run.path("report/report.json"))
    assert registry.champion().report == f"{store}/r/report/report.json"  # type: ignore[union-attr]
    local = Registry(tmp_path / "registry")
    local.promote(path, sha256=sha256, run="r", report=run.path("report/report.json"))
    assert local.champion().report == f"{store}/r/report/report.json"  # type: ignore[union-attr]


def test_shadow_answers_are_gathered_from_all_nodes(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry.at(store)
    append(registry.root, {"asked_s": 1, "id": "a"})
    registry.send_rows()
    other_node(monkeypatch, tmp_path)
    here = Registry.at(store)
    assert [row["id"] for row in here.shadow_rows()] == ["a"]
    name = next(iter(Remote(f"{store}/shadow").listing()))
    grown = (Remote(f"{store}/shadow") / name).read() + b'{"asked_s": 2, "id": "b"}\n'
    (Remote(f"{store}/shadow") / name).write(grown)
    (Remote(f"{store}/shadow") / "other.jsonl").write(b'{"asked_s": 3, "id": "c"}\n')
    assert [row["id"] for row in here.shadow_rows()] == ["a", "b", "c"]
    with (here.root / "shadow" / name).open("ab") as own:
        own.write(b'{"asked_s": 4, "id": "d"}\n')  # by this node, which has not sent it yet
    assert [row["id"] for row in here.shadow_rows()] == ["a", "b", "c", "d"]


def test_a_store_that_does_not_answer_is_one_line(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Remote) -> bytes:
        raise StorageError(f"{self.uri}: the store cannot be reached")

    monkeypatch.setattr(Remote, "read", fail)
    with pytest.raises(RegistryError, match=rf"^{store}/champion.json: the store cannot be reached$"):
        Registry.at(store)


def test_replicas_are_told_the_uri(store: str) -> None:
    assert completed(ServingSettings(registry=f"{store}/")).registry == store


def test_a_decision_is_not_lost_to_a_follower_of_the_same_node(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes the mirror what the store had, in the very moment in which the new champion is written."""
    promote(store, tmp_path, b"one")
    write_whole = mirror.write_whole

    def write(path: Path, data: bytes) -> None:
        write_whole(path, data)
        if path.name == "champion.json":
            write_whole(path, before)

    before = Registry.at(store).file.read_bytes()
    with monkeypatch.context() as follower:
        follower.setattr(mirror, "write_whole", write)
        second = promote(store, tmp_path, b"two")
    registry = Registry.at(store)
    assert registry.champion().sha256 == second  # type: ignore[union-attr]


def test_who_lost_the_registry_decides_nothing(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that slept while it uploaded: another one took its claim down, and decided."""
    first = promote(store, tmp_path, b"one")
    upload = Remote.upload

    def slow(self: Remote, source: Path) -> None:
        upload(self, source)
        for name in Remote(f"{store}/owners").listing():
            (Remote(f"{store}/owners") / name).remove()

    monkeypatch.setattr(Remote, "upload", slow)
    with pytest.raises(RegistryError, match="another process has taken over"):
        promote(store, tmp_path, b"two")
    assert Registry.at(store).champion().sha256 == first  # type: ignore[union-attr]


def test_a_damaged_object_is_repaired_by_promoting_its_model_again(store: str, tmp_path: Path) -> None:
    sha256 = promote(store, tmp_path, b"one")
    (Remote(store) / f"models/{sha256}/model.gguf").write(b"ohe")
    promote(store, tmp_path, b"one")
    assert (Remote(store) / f"models/{sha256}/model.gguf").read() == b"one"


def test_a_store_that_can_only_be_read_is_told(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry.at(store)
    assert registry.write_problem() is None
    assert Remote(store).listing() == {}

    def denied(self: Remote, _: bytes) -> None:
        raise StorageError(f"{self.uri}: access is denied")

    monkeypatch.setattr(Remote, "write", denied)
    assert "access is denied" in (registry.write_problem() or "")
