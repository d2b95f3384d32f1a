import os
from pathlib import Path

import pytest

from serving.storage.mirror import (
    REGISTRIES,
    discard,
    fetched,
    fetched_folder,
    open_mirror,
    origin,
    publish,
    pull,
    renewed,
    shared,
)
from serving.storage.node_cache import mirror_path
from serving.storage.remote import Remote


def here(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def put(root: Path, name: str, data: bytes) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_a_path_outside_of_mirrors_is_left_alone(tmp_path: Path) -> None:
    path = put(tmp_path, "a/b", b"x")
    assert origin(path) is None
    assert shared(path) == str(path)
    publish(path)
    pull(tmp_path)
    assert fetched(path) == renewed(path) == path
    discard(tmp_path / "a")
    assert not path.exists()


def test_what_is_published_is_in_the_store(store: str) -> None:
    root = open_mirror(store)
    path = put(root, "a/b", b"1")
    assert shared(path) == f"{store}/a/b"
    assert shared(root) == store
    publish(path)
    assert (Remote(store) / "a/b").read() == b"1"
    discard(root / "a")
    assert Remote(store).listing() == here(root) == {}


def test_a_file_that_did_not_change_is_not_sent_again(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    upload = Remote.upload
    monkeypatch.setattr(Remote, "upload", lambda self, path: (sent.append(path), upload(self, path)))
    path = put(open_mirror(store), "a", b"1")
    publish(path)
    publish(path)
    assert len(sent) == 1
    path.write_bytes(b"2")
    os.utime(path, ns=(0, 1))
    publish(path)
    assert len(sent) == 2
    assert (Remote(store) / "a").read() == b"2"


def test_pull_makes_the_mirror_what_the_store_has(store: str) -> None:
    remote, root = Remote(store), open_mirror(store)
    for name in ("same", "changed", "sub/damaged", "skipped/x"):
        (remote / name).write(b"old")
    pull(root, skip=lambda name: name.startswith("skipped/"))
    assert here(root) == {"same": b"old", "changed": b"old", "sub/damaged": b"old"}
    (remote / "changed").write(b"new!")
    (remote / "added").write(b"+")
    put(root, "sub/damaged", b"????")
    put(root, "never published", b"-")
    put(root, "sub/.half.tmp", b"-")
    put(root, "skipped/mine", b"m")
    pull(root, skip=lambda name: name.startswith("skipped/"))
    assert here(root) == {
        "same": b"old", "changed": b"new!", "sub/damaged": b"old", "added": b"+", "skipped/mine": b"m",
    }  # fmt: skip
    assert not (root / "sub/.half.tmp").exists()


def test_pull_fetches_only_what_changed(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = open_mirror(store)
    publish(put(root, "mine", b"1"))
    (Remote(store) / "theirs").write(b"2")
    pull(root)
    fetched_again: list[str] = []
    download = Remote.download
    monkeypatch.setattr(
        Remote, "download", lambda self, *given: (fetched_again.append(self.uri), download(self, *given))[1]
    )
    pull(root)
    assert fetched_again == []
    (Remote(store) / "theirs").write(b"two")
    pull(root)
    assert [uri.rpartition("/")[2] for uri in fetched_again] == ["theirs"]
    assert here(root) == {"mine": b"1", "theirs": b"two"}


def test_single_files_and_folders_are_fetched_when_they_are_asked_for(store: str) -> None:
    root = open_mirror(store)
    (Remote(store) / "trial/note").write(b"n")
    (Remote(store) / "trial/part/weights").write(b"w")
    assert fetched(root / "trial/note").read_bytes() == b"n"
    assert not fetched(root / "none").exists()
    assert here(fetched_folder(root / "trial")) == {"note": b"n", "part/weights": b"w"}


def test_renewed_follows_the_store(store: str) -> None:
    root = open_mirror(store, REGISTRIES)
    assert not renewed(root / "champion.json").exists()
    for data in (b"one", b"two"):
        (Remote(store) / "champion.json").write(data)
        assert renewed(root / "champion.json").read_bytes() == data
    (Remote(store) / "champion.json").remove()
    assert not renewed(root / "champion.json").exists()


def test_mirrors_of_one_uri_are_one_and_keep_their_id(store: str) -> None:
    first, again = open_mirror(store), open_mirror(f"{store}/")
    assert first == again != mirror_path(f"{store}/other")
    found, later = origin(first), origin(again / "x" / "y")
    assert found is not None
    assert found == later
