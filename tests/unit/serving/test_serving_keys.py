import hashlib
from pathlib import Path

import pytest

from serving import keys
from serving.keys import KeyRing, KeysError, read_keys


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


@pytest.mark.parametrize(
    "content",
    ["", "# none\n", "secret alice\n", line("one"), line("one", "alice", "0"), line("one", "a", "1", "2")],
)
def test_a_malformed_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "keys").write_text(content)
    with pytest.raises(KeysError, match="keys"):
        read_keys(tmp_path / "keys")


def test_a_changed_file_is_read_again_and_a_broken_one_is_not(tmp_path: Path) -> None:
    path, now_s = tmp_path / "keys", 0.0
    path.write_text(line("one", "alice"))
    ring = KeyRing(path, clock=lambda: now_s)
    path.write_text(line("two", "bob") + "# longer\n")
    now_s += 2
    assert ring.find("one") is None
    assert ring.find("two") is not None
    path.write_text("broken")
    now_s += 2
    assert ring.find("two") is not None


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
