"""The models of one replica: the champion, and a few more that are asked for by name, on the same cores."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving.engine import CoreLease, Engine, EngineError, EngineSettings, Request, Sampling
from serving.expectations import check
from serving.kept_models import expected_here, model_here, verify
from serving.names import UnknownModel, find
from serving.registry import Champion, Registry, RegistryError

log = logging.getLogger(__name__)

_SMOKE_LIMIT_S = 60.0
_SMOKE_TOKENS = 8


class NotReady(Exception):
    """There is no model to answer with yet."""


@dataclass(eq=False)
class LoadedModel:
    """An engine with the name that replies give it."""

    name: str
    sha256: str
    engine: Engine
    num_calls: int = 0
    last_used_s: float = 0.0
    retired: bool = False


class ModelHost:
    """Thread-safe. A call keeps the model it began with; a replaced model closes after its last call."""

    def __init__(
        self,
        registry: Registry,
        settings: EngineSettings,
        *,
        max_models: int = 2,
        open_engine: Callable[[Path, EngineSettings, CoreLease | None], Engine] = Engine.open,
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._max_models = self._max_asked_for = max_models
        self._open_engine = open_engine
        self._lock = threading.RLock()
        self._loading = threading.Lock()
        self._lease: CoreLease | None = None
        self._champion: LoadedModel | None = None
        self._others: dict[str, LoadedModel] = {}
        self.last_error: str | None = None
        """Why the latest change of champion was not followed; None if it was."""
        self.num_swaps = 0

    @property
    def settings(self) -> EngineSettings:
        return self._settings

    @property
    def champion(self) -> LoadedModel | None:
        """The model that answers calls without a name."""
        return self._champion

    @property
    def loaded(self) -> list[LoadedModel]:
        with self._lock:
            return [*([self._champion] if self._champion else []), *self._others.values()]

    def follow(self) -> bool:
        """Serve the registry's champion, if another is served; the calls that run stay with theirs.

        Returns whether the model changed. Raises NotReady, RegistryError or EngineError if the new one is not
        fit to serve; the old one then goes on.
        """
        with self._loading:
            try:
                wanted = self._registry.champion()
                if wanted is None:
                    raise NotReady(f"{self._registry.file}: there is no champion yet")
                current = self._champion
                if current is not None and current.sha256 == wanted.sha256:
                    self.last_error = None
                    return False
                new = self._load(champion_name(wanted), wanted.model, wanted.sha256)
            except Exception as error:
                self.last_error = str(error) or type(error).__name__
                raise
            with self._lock:
                self._champion, old = new, self._champion
            self.last_error, self.num_swaps = None, self.num_swaps + (old is not None)
        if old is not None:
            log.info("champion %s replaces %s", new.sha256[:12], old.sha256[:12])
            self._retire(old)
        return True

    def enter(self, name: str | None) -> LoadedModel:
        """The model of that name, which stays open until `leave`; loads it if need be, which blocks.

        Raises NotReady, UnknownModel, RegistryError or EngineError.
        """
        with self._lock:
            held = self._held(name)
            if held is not None:
                return _count_in(held)
        with self._loading:
            with self._lock:
                held = self._held(name)
                if held is not None:
                    return _count_in(held)
            assert name is not None
            entry = find(self._registry, name)
            new = self._load(entry.name, entry.model, entry.sha256)
            with self._lock:
                self._others[new.sha256] = _count_in(new)
                evicted = self._evict()
        for model in evicted:
            self._retire(model)
        return new

    def leave(self, model: LoadedModel) -> None:
        """The call that entered is over; a model that was replaced meanwhile closes after its last one."""
        with self._lock:
            model.num_calls -= 1
            model.last_used_s = time.monotonic()
            over = model.retired and model.num_calls == 0
        if over:
            _close(model)

    def drop(self, model: LoadedModel) -> None:
        """The engine has failed: who asks for the model by name gets a new one. The champion stays."""
        with self._lock:
            if self._others.get(model.sha256) is not model:
                return
            del self._others[model.sha256]
        self._retire(model)

    def make_room(self, num_others: int) -> None:
        """Hold so many models beside the champion at least: those in use all the time, which would else throw
        each other out, to be loaded anew at every call."""
        self._max_models = max(self._max_asked_for, 1 + num_others)

    def ready(self, name: str | None) -> bool:
        """Whether `enter(name)` returns without loading."""
        with self._lock:
            return self._held(name) is not None

    def close(self) -> None:
        """Cancel what runs and free everything."""
        with self._lock:
            models, self._champion, self._others = self.loaded, None, {}
        for model in models:
            model.engine.close()
        if self._lease is not None:
            self._lease.release()

    # Who is asked.

    def _held(self, name: str | None) -> LoadedModel | None:
        if self._champion is None:
            raise NotReady(self.last_error or "no model is loaded yet")
        if name in (None, "champion", self._champion.name):
            return self._champion
        assert name is not None
        sha256 = find(self._registry, name).sha256
        return self._champion if sha256 == self._champion.sha256 else self._others.get(sha256)

    def _evict(self) -> list[LoadedModel]:
        """The least recently used models beyond the limit."""
        by_age = sorted(self._others.values(), key=lambda model: (model.num_calls > 0, model.last_used_s))
        evicted = by_age[: max(0, len(by_age) - (self._max_models - 1))]
        for model in evicted:
            del self._others[model.sha256]
        return evicted

    def _retire(self, model: LoadedModel) -> None:
        with self._lock:
            model.retired = True
            over = model.num_calls == 0
        if over:
            _close(model)

    # Loading.

    def _load(self, name: str, path: Path, sha256: str) -> LoadedModel:
        """Fetch if need be, verify, load, and generate what was recorded; then it is warm. Blocks.

        Raises RegistryError or EngineError.
        """
        try:
            expected, file = _sound_files(path, sha256)
            engine = self._open_engine(file, self._settings, self._shared_lease())
            try:
                smoke(engine)
                if expected.is_file():
                    check(engine, expected)
            except BaseException:
                engine.close()
                raise
        except OSError as error:  # of a disk or a mount, and it may pass
            raise RegistryError(f"{path}: {error.strerror or error or type(error).__name__}") from error
        log.info("model %s (%s) is loaded and has generated", name, sha256[:12])
        return LoadedModel(name, sha256, engine)

    def _shared_lease(self) -> CoreLease:
        """The replica owns its cores once; its engines share them, so that a new one can warm up beside."""
        if self._lease is None:
            unpinned = not self._settings.pin
            self._lease = (
                CoreLease.unpinned()
                if unpinned
                else CoreLease.acquire(self._settings.cores, wait_s=self._settings.core_wait_s)
            )
        return CoreLease(self._lease.cpus, ())


def champion_name(champion: Champion) -> str:
    """What replies call the champion: run and hash, so that two champions are never mixed up."""
    return f"{champion.run}@{champion.sha256[:8]}"


def _sound_files(path: Path, sha256: str) -> tuple[Path, Path]:
    """What the model said when it was promoted, and the model, both on this node. Raises RegistryError."""
    expected, model = expected_here(path), model_here(path, sha256)
    verify(model, sha256)
    return expected, model


def smoke(engine: Engine) -> None:
    """Have the model say something. Raises EngineError if it cannot."""
    prompt = engine.chat.render([{"role": "user", "content": "Name a colour."}])
    stream = engine.submit(
        Request("smoke", prompt, Sampling(max_tokens=_SMOKE_TOKENS), deadline_s=_SMOKE_LIMIT_S)
    )
    result = stream.result(_SMOKE_LIMIT_S * 2)
    if result.finish_reason not in ("stop", "length") or not result.num_answer_tokens:
        raise EngineError(
            f"{engine.model_path}: the model does not answer: {result.error or result.finish_reason}"
        )


def _count_in(model: LoadedModel) -> LoadedModel:
    model.num_calls += 1
    return model


def _close(model: LoadedModel) -> None:
    """On a thread of its own: closing waits for the engine's threads."""
    log.info("model %s (%s) is closed", model.name, model.sha256[:12])
    threading.Thread(target=model.engine.close, name="close-engine", daemon=True).start()


__all__ = ["LoadedModel", "ModelHost", "NotReady", "UnknownModel", "champion_name", "smoke"]
