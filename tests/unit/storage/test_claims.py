import json
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem

from ray_jobs import locks
from ray_jobs.errors import RunBusy
from ray_jobs.locks import owned
from ray_jobs.runs import open_run
from serving.storage import claims, mirror, remote
from serving.storage.claims import STALE_S, Claimed, claimed
from serving.storage.remote import Remote


def age(store: str, name: str, seconds: float) -> None:
    """Makes a claim as old as if it had not been renewed for that long."""
    claim = Remote(store) / "owners" / f"{name}.json"
    entry = claim.filesystem.handler.fs.store[claim.path]
    entry.modified = datetime.now(UTC) - timedelta(seconds=seconds)


def names(store: str) -> list[str]:
    return sorted(Remote(f"{store}/owners").listing())


def test_one_owner_at_a_time(store: str) -> None:
    with claimed(Remote(store), "a", {"host": "alpha"}):
        assert names(store) == ["a.json"]
        with pytest.raises(Claimed) as busy, claimed(Remote(store), "b", {"host": "beta"}):
            pass
        assert busy.value.owner["host"] == "alpha"
        assert names(store) == ["a.json"]
    assert names(store) == []


def test_a_dead_owner_is_followed_and_a_living_one_is_not(store: str) -> None:
    with ExitStack() as held:
        held.enter_context(claimed(Remote(store), "a", {}))
        age(store, "a", STALE_S - 5)
        with pytest.raises(Claimed), claimed(Remote(store), "b", {}):
            pass
        age(store, "a", STALE_S + 5)
        with claimed(Remote(store), "b", {}):
            assert names(store) == ["b.json"]


def test_ones_own_claim_is_taken_up_at_once(store: str) -> None:
    (Remote(store) / "owners/a.json").write(json.dumps({"working": True}).encode())
    with claimed(Remote(store), "a", {"pid": 1}):
        assert json.loads((Remote(store) / "owners/a.json").read())["pid"] == 1


def test_of_many_at_once_one_at_a_time_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, store = LocalFileSystem(), "disk://runs"  # the store in memory is not made for several threads
    disk.create_dir(str(tmp_path / "owners"))
    monkeypatch.setattr(remote, "_open", lambda uri: (disk, uri.replace(store, str(tmp_path))))
    monkeypatch.setattr(claims, "_PAUSE_S", 0.02)
    inside, most, worked = [0], [0], [0]
    guard = threading.Lock()

    def contend(name: str) -> None:
        while True:
            try:
                with claimed(Remote(store), name, {}):
                    with guard:
                        inside[0] += 1
                        most[0] = max(most[0], inside[0])
                        worked[0] += 1
                    with guard:
                        inside[0] -= 1
                    return
            except Claimed:
                continue

    threads = [threading.Thread(target=contend, args=(f"n{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (most, worked) == ([1], [6])
    assert names(store) == []


def test_who_comes_at_the_same_moment_is_waited_for(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Remote(store) / "owners/b.json"
    other.write(b'{"working": false}')
    monkeypatch.setattr(claims.time, "sleep", lambda _: other.remove())  # it took its claim down again
    with claimed(Remote(store), "a", {}):
        assert names(store) == ["a.json"]


def test_who_comes_back_while_it_is_replaced_stays(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Remote(store) / "owners/b.json"
    owner.write(b'{"working": true}')
    age(store, "b", STALE_S + 5)
    rival = claims._Claim.rival

    def and_back(self: claims._Claim, **given: bool) -> object:
        found = rival(self, **given)
        owner.write(b'{"working": true}')
        return found

    monkeypatch.setattr(claims._Claim, "rival", and_back)
    with pytest.raises(Claimed), claimed(Remote(store), "a", {}):
        pass
    assert names(store) == ["b.json"]


@pytest.mark.parametrize("left", [True, False])
def test_who_slept_for_too_long_finds_the_run_taken(
    store: str, monkeypatch: pytest.MonkeyPatch, left: bool
) -> None:
    """Also by one who is done by now: all that is left is that one's own claim is gone."""
    monkeypatch.setattr(claims, "BEAT_S", 0.01)
    times = iter([0.0])
    lost = threading.Event()

    def clock() -> Iterator[float]:
        yield from times
        while True:
            yield STALE_S + 1.0

    ticks = clock()
    monkeypatch.setattr(claims.time, "time", lambda: next(ticks))
    claim = claims._Claim(Remote(store) / "owners", "a", {})
    claim.put(working=True)
    if left:
        (Remote(store) / "owners/b.json").write(json.dumps({"working": True}).encode())
    else:
        claim.take_down()
    claims._beat(claim, threading.Event(), lost.set)
    assert lost.is_set()
    assert names(store) == (["a.json", "b.json"] if left else [])


def test_a_run_in_a_store_names_its_owner(
    store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(claims, "BEAT_S", 0.05)
    monkeypatch.setattr(locks, "POLL_S", 0.05)
    with owned(open_run(store, "r").root):
        with pytest.raises(RunBusy, match="process"), owned(open_run(store, "r").root):
            pass  # the same node: the kernel's lock
        monkeypatch.setenv("ORPO_CACHE", str(tmp_path / "another node"))
        with (
            pytest.raises(RunBusy, match=rf"{store}/r: process \d+ on \S+ works on this run since"),
            owned(open_run(store, "r").root),
        ):
            pass
    with owned(open_run(store, "r").root):
        assert len(names(f"{store}/r")) == 1


def test_a_run_is_taken_over_once_its_owner_is_known_to_be_dead(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "POLL_S", 0.05)
    root = open_run(store, "r").root
    (Remote(f"{store}/r/owners") / "dead.json").write(b'{"host": "elsewhere", "working": true}')
    looks = []
    rival = claims._Claim.rival

    def aging(self: claims._Claim, **given: bool) -> object:
        looks.append(given)
        if "dead.json" in names(f"{store}/r"):
            age(f"{store}/r", "dead", STALE_S + 5 if len(looks) > 3 else 1)
        return rival(self, **given)

    monkeypatch.setattr(claims._Claim, "rival", aging)
    with owned(root):
        assert "dead.json" not in names(f"{store}/r")
    assert len(looks) > 3


@pytest.mark.parametrize("in_background", [False, True])
def test_a_run_that_was_taken_over_ends(
    store: str, monkeypatch: pytest.MonkeyPatch, in_background: bool
) -> None:
    """Also one that a shell has put in the background, where Ctrl-C is ignored."""

    def lose(folder: object, name: str, owner: object, on_lost: object) -> ExitStack:
        assert callable(on_lost)
        threading.Timer(0.1, on_lost).start()
        return ExitStack()

    monkeypatch.setattr("ray_jobs.locks.claimed", lose)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if in_background else signal.default_int_handler)
    try:
        with pytest.raises(RunBusy, match="another process has taken over"), owned(open_run(store, "r").root):
            threading.Event().wait(10)
    finally:
        signal.signal(signal.SIGINT, before)


def test_who_has_lost_a_run_leaves_the_store_alone(store: str) -> None:
    folder = open_run(store, "r")
    folder.write("state.json", b"{}")
    mirror.let_go(folder.root)
    folder.write("state.json", b'{"stale": 1}')
    mirror.discard(folder.path("state.json"))
    assert (Remote(f"{store}/r") / "state.json").read() == b"{}"
    mirror.take_hold(folder.root)
    folder.write("state.json", b'{"mine": 1}')
    assert (Remote(f"{store}/r") / "state.json").read() == b'{"mine": 1}'
