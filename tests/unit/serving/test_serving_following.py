"""What the disks and stores under a registry do does not keep later champions from being served."""

from __future__ import annotations

import errno
import threading
from typing import Any

import pytest
from serving_fakes import Clock, promote

from serving import following, kept_models
from serving import registry as registry_module
from serving.following import Follower, NotServable
from serving.host import ModelHost
from serving.registry import Registry, RegistryError


def fault(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ESTALE, "Stale file handle")


def served(host: ModelHost) -> str:
    assert host.champion is not None
    return host.champion.sha256


def test_a_file_that_cannot_be_read_is_tried_again(
    registry: Registry, host: ModelHost, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = promote(registry, "one")
    follower = Follower(host, registry, every_s=60, clock=clock)
    follower.start()
    second = promote(registry, "two")
    with monkeypatch.context() as broken:
        broken.setattr(kept_models, "sha256_of", fault)
        follower.look()
        with pytest.raises(RegistryError, match=r"model\.gguf: Stale file handle"):
            host.follow()
        with pytest.raises(RegistryError, match="Stale file handle"):
            host.enter(f"local@{second[:8]}")
    assert served(host) == first
    assert "Stale" in (host.last_error or "")
    clock.now_s = 20
    follower.look()
    assert served(host) == first, "not at once"
    clock.now_s = 40
    follower.look()
    assert (served(host), host.last_error) == (second, None)
    follower.stop()


def test_a_replica_does_not_start_on_a_broken_disk(
    registry: Registry, host: ModelHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(registry, "one")
    monkeypatch.setattr(following, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(kept_models, "sha256_of", fault)
    monkeypatch.setattr(registry_module, "renewed", fault)
    with pytest.raises(RegistryError, match=r"champion\.json: Stale file handle"):
        registry.renew()
    follower = Follower(host, registry, every_s=60)
    with pytest.raises(NotServable, match="Stale"):
        follower.start()
    assert host.champion is None
    assert "Stale" in (host.last_error or "")


def test_a_replica_that_starts_before_its_disk_has_patience(
    registry: Registry, host: ModelHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = promote(registry, "one")
    monkeypatch.setattr(following, "_RETRY_S", 0.0)
    champion, faults = registry.champion, iter(range(5))

    def away() -> Any:
        if next(faults, None) is not None:
            raise RegistryError("champion.json: Stale file handle")
        return champion()

    monkeypatch.setattr(registry, "champion", away)
    follower = Follower(host, registry, every_s=60)
    follower.start()
    follower.stop()
    assert served(host) == first


def test_nothing_ends_the_watch(
    registry: Registry, host: ModelHost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    promote(registry, "one")
    follower = Follower(host, registry, every_s=0.001)
    looked = threading.Semaphore(0)

    def bug() -> None:
        looked.release()
        raise ValueError("a bug")

    monkeypatch.setattr(registry, "renew", lambda: None)
    follower.start()
    monkeypatch.setattr(registry, "renew", bug)
    assert all(looked.acquire(timeout=5) for _ in range(3))
    monkeypatch.setattr(registry, "renew", lambda: looked.release())
    second = promote(registry, "two")
    for _ in range(500):
        looked.acquire(timeout=5)
        if served(host) == second:
            break
    follower.stop()
    assert served(host) == second
    assert "a bug" in caplog.text


def test_an_error_without_a_name_is_an_error_of_the_change(
    registry: Registry, host: ModelHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(registry, "one")
    monkeypatch.setattr("serving.loading.smoke", lambda _: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        host.follow()
    assert host.last_error == "MemoryError"
