import errno
import io
import os
import signal
import threading
from pathlib import Path

import pytest

from serving.storage import remote
from serving.storage.remote import Remote, StorageError, absolute, folder_path, is_uri, reason


def test_objects_are_written_listed_and_removed(store: str, tmp_path: Path) -> None:
    folder = Remote(store)
    (folder / "a/one").write(b"1")
    (folder / "two").upload(folder_path(__file__))
    assert {name: stamp.num_bytes for name, stamp in folder.listing().items()} == {
        "a/one": 1,
        "two": os.path.getsize(__file__),
    }
    assert (folder / "a/one").read() == b"1"
    (folder / "two").download(tmp_path / "x" / "two")
    assert (tmp_path / "x" / "two").read_bytes() == Path(__file__).read_bytes()
    assert os.listdir(tmp_path / "x") == ["two"]
    (folder / "a").remove()
    assert list(folder.listing()) == ["two"]


def test_an_interrupt_waits_for_the_write_and_ends_what_called_it(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyarrow completes an object from what it has when its stream is closed by an error."""
    target, data = Remote(store) / "big", os.urandom(3000)
    monkeypatch.setattr(remote, "_CHUNK_BYTES", 1000)
    main, reads = threading.main_thread().ident, []

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            reads.append(size)
            if len(reads) == 2:
                signal.pthread_kill(main or 0, signal.SIGUSR2)
                interrupted.wait(10)
            return super().read(size)

    interrupted = threading.Event()

    def interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR2, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            target._put(lambda: Slow(data))
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert target.read() == data


def test_what_is_missing_is_told_apart_from_what_fails(store: str) -> None:
    missing = Remote(store) / "none"
    assert missing.stamp() is None
    assert Remote(f"{store}/nowhere").listing() == {}
    missing.remove()
    with pytest.raises(FileNotFoundError):
        missing.read()


def test_folders_and_stores_are_told_apart() -> None:
    assert [is_uri(each) for each in ("runs", "/a/b", "file:///a", "s3://b/c", "memory://x")] == [
        False, False, False, True, True,
    ]  # fmt: skip
    assert folder_path("file:///a/b%20c") == Path("/a/b c")
    assert absolute("s3://bucket/runs/") == "s3://bucket/runs"
    assert absolute("runs") == str(Path("runs").resolve())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("When x: AWS Error NO_SUCH_BUCKET during Put: gone (Request ID: 7)", "there is no such bucket"),
        ("AWS Error ACCESS_DENIED during HeadObject operation: No response body", "AWS_ACCESS_KEY_ID"),
        ("AWS Error INVALID_ACCESS_KEY_ID during Put operation: unknown key", "access is denied"),
        ("AWS Error NETWORK_CONNECTION during Put: curlCode: 7", "the store cannot be reached"),
        ("something\n  else", "something else"),
    ],
)
def test_reasons_are_one_line(text: str, said: str) -> None:
    found = reason(OSError(text))
    assert said in found
    assert "\n" not in found


def test_a_missing_package_is_named() -> None:
    with pytest.raises(StorageError, match=r"oss://b/runs: .*ossfs") as caught:
        Remote("oss://b/runs").check()
    assert caught.value.errno == errno.EIO
    with pytest.raises(StorageError, match="nope://b/runs: "):
        Remote("nope://b/runs").check()


def test_settings_of_a_store_do_not_go_into_its_uri() -> None:
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL"):
        Remote("s3://b/runs?endpoint_override=x").check()
