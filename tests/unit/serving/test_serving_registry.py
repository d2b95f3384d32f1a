import hashlib
import json
import shutil
import threading
from pathlib import Path

import pytest

from serving import files, kept_models
from serving.registry import BaseModel, Registry, RegistryError
from serving.storage import mirror


def make_model(folder: Path, content: bytes) -> tuple[Path, str]:
    path = folder / f"{content[:8].hex()}.gguf"
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


def promote(registry: Registry, folder: Path, content: bytes, run: str = "local") -> str:
    model, sha256 = make_model(folder, content)
    registry.promote(model, sha256=sha256, run=run, report=folder / "report.json")
    return sha256


def test_an_empty_registry_has_no_champion(tmp_path: Path) -> None:
    assert Registry(tmp_path / "none").champion() is None
    assert Registry(tmp_path / "none").history() == []


def test_promotion_copies_the_model(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    model, sha256 = make_model(tmp_path, b"one")
    decided = registry.promote(
        model,
        sha256=sha256,
        run="local",
        report=tmp_path / "report.json",
        decided_at="2026-01-02T03:04:05+00:00",
    )
    model.write_bytes(b"the run folder goes on changing")
    assert registry.champion() == decided
    assert decided.model.read_bytes() == b"one"
    assert decided.previous is None
    assert json.loads(registry.file.read_text()) == {
        "model": f"models/{sha256}/model.gguf",
        "sha256": sha256,
        "run": "local",
        "decided_at": "2026-01-02T03:04:05+00:00",
        "report": str(tmp_path / "report.json"),
        "base": None,
        "previous": None,
    }


def test_a_moved_registry_still_works(tmp_path: Path) -> None:
    promote(Registry(tmp_path / "old"), tmp_path, b"one")
    shutil.move(tmp_path / "old", tmp_path / "new")
    champion = Registry(tmp_path / "new").champion()
    assert champion is not None
    assert champion.model.read_bytes() == b"one"


def test_history_and_rollback(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    hashes = [promote(registry, tmp_path, content) for content in (b"one", b"two", b"three")]
    assert [each.sha256 for each in registry.history()] == hashes[::-1]
    assert registry.rollback().sha256 == hashes[1]
    assert [each.sha256 for each in registry.history()] == hashes[1::-1]
    registry.rollback()
    with pytest.raises(RegistryError, match="no previous champion"):
        registry.rollback()
    champion = registry.champion()
    assert champion is not None
    assert champion.sha256 == hashes[0]


def test_rollback_refuses_a_damaged_model(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    first, second = promote(registry, tmp_path, b"one"), promote(registry, tmp_path, b"two")
    (registry.root / "models" / first / "model.gguf").write_bytes(b"0ne")
    with pytest.raises(RegistryError, match="sha256"):
        registry.rollback()
    assert [each.sha256 for each in registry.history()] == [second, first]


def test_promoting_the_champion_again_keeps_its_predecessor(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    first = promote(registry, tmp_path, b"one")
    second = promote(registry, tmp_path, b"two")
    assert promote(registry, tmp_path, b"two", run="again") == second
    assert [(each.sha256, each.run) for each in registry.history()] == [(second, "again"), (first, "local")]


def test_a_damaged_copy_is_replaced(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    sha256 = promote(registry, tmp_path, b"one")
    kept = registry.root / "models" / sha256 / "model.gguf"
    kept.write_bytes(b"0ne")
    promote(registry, tmp_path, b"one")
    assert kept.read_bytes() == b"one"


def test_the_base_is_kept_too(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    base, model = make_model(tmp_path, b"base"), make_model(tmp_path, b"tuned")
    registry.promote(
        model[0], sha256=model[1], run="local", report=tmp_path / "r.json", base=BaseModel(*base)
    )
    champion = registry.champion()
    assert champion is not None
    assert champion.base is not None
    assert champion.base.model.read_bytes() == b"base"


def test_wrong_bytes_are_refused(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    first = promote(registry, tmp_path, b"one")
    model, _ = make_model(tmp_path, b"two")
    with pytest.raises(RegistryError, match=r"sha256 is \w+…, expected"):
        registry.promote(model, sha256="0" * 64, run="x", report=tmp_path / "r.json")
    with pytest.raises(RegistryError, match="no such model file"):
        registry.promote(tmp_path / "none.gguf", sha256="0" * 64, run="x", report=tmp_path / "r.json")
    with pytest.raises(RegistryError, match="64 lowercase hex digits"):
        registry.promote(model, sha256="../../x", run="x", report=tmp_path / "r.json")
    assert [path.name for path in (registry.root / "models").iterdir()] == [first]
    assert [each.sha256 for each in registry.history()] == [first]


class Killed(BaseException):
    """As if the process had ended here."""


STEPS = {
    "copy_hashed": kept_models,
    "fsync": files.os,
    "replace": files.os,
    "sync_folder": kept_models,
    "write_whole": mirror,
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_step_the_old_champion_or_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    registry = Registry(tmp_path / "registry")
    first = promote(registry, tmp_path, b"one")
    second_hash = make_model(tmp_path, b"two")[1]
    real = getattr(STEPS[step], step)

    def die(*args: object) -> None:
        if after:
            real(*args)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(STEPS[step], step, die)
        with pytest.raises(Killed):
            promote(registry, tmp_path, b"two")
    champion = registry.champion()
    assert champion is not None
    assert champion.sha256 in (first, second_hash)
    assert champion.model.read_bytes() == (b"one" if champion.sha256 == first else b"two")
    if not (step == "write_whole" and after):
        assert champion.sha256 == first
    assert promote(registry, tmp_path, b"two") == second_hash
    assert not list(registry.root.rglob("*.tmp"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"model": "m.gguf"}',
        b'{"model": 1, "sha256": "x", "run": "r", "decided_at": "d", "report": "r"}',
        b'{"model": "m", "sha256": "abc", "run": "r", "decided_at": "d", "report": "r"}',
        b"[" * 100_000,
    ],
)
def test_a_corrupt_or_foreign_file_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    registry = Registry(tmp_path)
    registry.file.write_bytes(content)
    with pytest.raises(RegistryError, match=r"champion\.json: not a champion file: ") as caught:
        registry.champion()
    assert "\n" not in str(caught.value)
    model, sha256 = make_model(tmp_path, b"one")
    with pytest.raises(RegistryError):
        registry.promote(model, sha256=sha256, run="r", report=tmp_path / "r.json")
    assert registry.file.read_bytes() == content, "a foreign file is never overwritten"


def test_two_writers_take_turns(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    contents = [f"model {index}".encode() for index in range(8)]
    for content in contents:
        make_model(tmp_path, content)
    writers = [
        threading.Thread(target=promote, args=(Registry(registry.root), tmp_path / str(index), content))
        for index, content in enumerate(contents)
    ]
    for index in range(8):
        (tmp_path / str(index)).mkdir()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert {each.sha256 for each in registry.history()} == {hashlib.sha256(c).hexdigest() for c in contents}


def test_a_writer_that_holds_on_is_named(tmp_path: Path) -> None:
    registry = Registry(tmp_path, lock_timeout_s=0.05)
    model, sha256 = make_model(tmp_path, b"one")
    with files.locked(tmp_path / ".lock", 1), pytest.raises(RegistryError, match=r"\.lock: another process"):
        registry.promote(model, sha256=sha256, run="r", report=tmp_path / "r.json")


def test_what_comes_after_a_decision_does_not_make_it_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who is told that a rollback failed tries again, and goes back one champion too many."""
    registry = Registry(tmp_path / "registry")
    first, second = promote(registry, tmp_path, b"one"), promote(registry, tmp_path, b"two")
    (registry.root / "rollbacks.jsonl").mkdir()

    def fault(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(kept_models, "changed_s", fault)
    assert registry.rollback(only_from=second).sha256 == first
    assert "the reason is not noted" in caplog.text
    assert "models that nobody needs stay" in caplog.text
    assert registry.rollbacks() == []
    assert promote(registry, tmp_path, b"two") == registry.champion().sha256  # type: ignore[union-attr]


def test_a_line_that_is_not_whole_costs_no_other(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    for content in (b"one", b"two", b"three"):
        promote(registry, tmp_path, content)
    registry.rollback(reason="first")
    notes = registry.root / "rollbacks.jsonl"
    notes.write_bytes(notes.read_bytes() + b'[]\n{"at": "2026-')
    assert [row["reason"] for row in registry.rollbacks()] == ["first"]
    registry.rollback(reason="second")
    assert [row["reason"] for row in registry.rollbacks()] == ["first", "second"]


def test_who_was_put_back_says_so_until_it_is_promoted_again(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    promote(registry, tmp_path, b"one")
    promote(registry, tmp_path, b"two")
    restored = registry.rollback()
    assert restored.restored_at is not None
    assert registry.champion() == restored
    promote(registry, tmp_path, b"one", run="again")
    champion = registry.champion()
    assert champion is not None
    assert champion.restored_at is None


@pytest.mark.skipif(not hasattr(files.os, "fchmod"), reason="permissions are POSIX's")
def test_the_lock_of_another_user_can_be_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / ".lock"
    with files.locked(lock, 1):
        assert lock.stat().st_mode & 0o777 == 0o666, "whoever comes next may write to it, as NFS wants"
    opened = files.os.open

    def other_user(path: Path, flags: int, *more: int) -> int:
        if flags & (files.os.O_WRONLY | files.os.O_RDWR):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags, *more)

    monkeypatch.setattr(files.os, "open", other_user)
    with files.locked(lock, 1), pytest.raises(files.LockTimeout), files.locked(lock, 0):
        pass


def test_two_threads_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    target, contents = tmp_path / "file", [bytes([number]) * 5000 for number in range(2)]
    errors: list[Exception] = []

    def write(data: bytes) -> None:
        for _ in range(50):
            try:
                files.write_whole(target, data)
                assert target.read_bytes() in contents
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=write, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
