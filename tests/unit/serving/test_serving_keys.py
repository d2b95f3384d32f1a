import hashlib
from pathlib import Path

import pytest

from serving import keys
from serving.keys import KeyRing, read_keys


def line(key: str, *rest: str) -> str:
    return "  ".join([hashlib.sha256(key.encode()).hexdigest(), *rest]) + "\n"


def test_keys_are_found_by_hash(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# people\n\n" + line("one", "alice") + line("two", "bob", "30"))
    ring = KeyRing(path)
    bob = ring.find("two")
    assert bob is not None
    assert (bob.name, bob.requests_per_minute) == ("bob", 30)
    assert ring.find("three") is None
    assert ring.find("") is None


BAD_LINES = ["secret alice\n", line("one"), line("one", "alice", "0"), line("one", "a", "1", "2"), "\xff"]


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_line_that_is_no_key_is_left_out_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: str
) -> None:
    (tmp_path / "keys").write_bytes((line("two", "bob") + bad).encode("latin-1"))
    assert [key.name for key in read_keys(tmp_path / "keys")] == ["bob"]
    assert "keys line 2 is left out" in caplog.text
    assert bad.split()[0] not in caplog.text


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 2
        return self.now_s


def test_what_is_taken_out_of_the_file_is_worth_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(line("one", "alice") + line("two", "bob"))
    ring = KeyRing(path, clock=Clock())
    assert ring.find("one") is not None
    path.write_text(line("two", "bob") + "broken\n")
    assert (ring.find("one"), ring.find("two") is None) == (None, False)
    path.write_text("# none\n")
    assert ring.find("two") is None
    path.write_text(line("two", "bob"))
    assert ring.find("two") is not None
    path.unlink()
    assert ring.find("two") is None


def test_a_file_that_was_missing_or_unreadable_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    ring = KeyRing(path, clock=Clock())
    assert ring.find("one") is None
    path.write_text(line("one", "alice"))
    assert ring.find("one") is not None

    def fault(*_: object, **__: object) -> str:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_text", fault)
        path.touch()
        assert ring.find("one") is None
    assert ring.find("one") is not None


def test_the_command_prints_a_line_that_the_ring_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys.main(["alice"]) == 0
    printed = capsys.readouterr()
    (tmp_path / "keys").write_text(printed.out)
    found = KeyRing(tmp_path / "keys").find(printed.err.strip())
    assert found is not None
    assert found.name == "alice"
    assert printed.err.strip() not in printed.out
    assert keys.main([]) == 2
