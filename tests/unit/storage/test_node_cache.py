import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.files import locked
from serving.storage.mirror import open_mirror, publish
from serving.storage.node_cache import KEPT_S, default_cache_dir, local_copy, trim, with_sha256
from serving.storage.remote import Remote, StorageError

OLD_S = 10 * KEPT_S


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_path_is_its_own_copy() -> None:
    assert local_copy("runs/model.gguf") == Path("runs/model.gguf")
    assert with_sha256("runs/model.gguf", "0" * 64) == "runs/model.gguf"


def test_a_file_is_fetched_once_by_many(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (Remote(store) / "model.gguf").write(b"weights")
    address = with_sha256(f"{store}/model.gguf", sha256(b"weights"))
    fetches = []
    download = Remote.download
    monkeypatch.setattr(Remote, "download", lambda self, to: (fetches.append(to), download(self, to)))
    with ThreadPoolExecutor(8) as pool:
        copies = set(pool.map(local_copy, [address] * 8))
    assert len(fetches) == len(copies) == 1
    copy = copies.pop()
    assert (copy.name, copy.read_bytes()) == ("model.gguf", b"weights")
    copy.write_bytes(b"damaged")
    assert local_copy(address).read_bytes() == b"weights"


def test_what_a_mirror_of_this_node_has_is_not_fetched(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_mirror(store) / "models/base/model.gguf"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"weights")
    publish(model)
    monkeypatch.setattr(Remote, "download", lambda *_: pytest.fail("fetched"))
    copy = local_copy(with_sha256(f"{store}/models/base/model.gguf", sha256(b"weights")))
    assert copy.read_bytes() == b"weights"
    assert copy.samefile(model)


def test_another_content_than_recorded_is_refused(store: str) -> None:
    (Remote(store) / "model.gguf").write(b"flipped")
    with pytest.raises(StorageError, match=f"model.gguf: sha256 is {sha256(b'flipped')[:12]}…, expected"):
        local_copy(with_sha256(f"{store}/model.gguf", sha256(b"weights")))
    assert not [path for path in default_cache_dir().rglob("*") if path.is_file() and path.suffix == ".gguf"]


def test_a_wrong_object_is_fetched_again_once_it_has_changed(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote, fetches, download = Remote(store) / "model.gguf", [], Remote.download
    monkeypatch.setattr(Remote, "download", lambda self, to: (fetches.append(to), download(self, to)))
    remote.write(b"flipped")
    for _ in range(5):
        with pytest.raises(StorageError, match=f"sha256 is {sha256(b'flipped')[:12]}…, expected"):
            local_copy(with_sha256(remote.uri, sha256(b"weights")))
    assert len(fetches) == 1
    remote.write(b"weights")
    assert local_copy(with_sha256(remote.uri, sha256(b"weights"))).read_bytes() == b"weights"
    assert len(fetches) == 2


def test_without_a_hash_a_changed_object_is_fetched_anew(store: str) -> None:
    for data in (b"one", b"other"):
        (Remote(store) / "train.parquet").write(data)
        assert local_copy(f"{store}/train.parquet").read_bytes() == data
    with pytest.raises(FileNotFoundError):
        local_copy(f"{store}/none")


def aged(store: str, name: str, age_s: float) -> Path:
    """A copy of 1,000 bytes that was used some time ago."""
    (Remote(store) / name).write(name.encode() * 1000)
    copy = local_copy(f"{store}/{name}")
    os.utime(copy.parent, (time.time() - age_s,) * 2)
    return copy


def test_the_cache_forgets_what_was_not_used_for_longest(store: str) -> None:
    copies = [aged(store, name, OLD_S - order) for order, name in enumerate("abc")]
    new = aged(store, "d", 0)
    trim(2000)
    assert [copy.exists() for copy in (*copies, new)] == [False, False, True, True]
    trim(0)
    assert [copy.exists() for copy in (*copies, new)] == [False, False, False, True]


def test_a_mirror_that_a_run_holds_is_kept(store: str) -> None:
    held, free = open_mirror(f"{store}/held"), open_mirror(f"{store}/free")
    for root in (held, free):
        (root / "file").write_bytes(bytes(1000))
        (root / ".lock").touch()
        os.utime(root.parent, (time.time() - OLD_S,) * 2)
    with locked(held / ".lock", 1.0):
        trim(0)
    assert (held / "file").exists()
    assert not free.exists()


def test_the_limit_is_set_by_the_environment(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old = aged(store, "a", OLD_S)
    monkeypatch.setenv("ORPO_CACHE_MAX_GB", "0.0000015")
    aged(store, "b", 0)
    assert not old.exists()
