"""The models of one replica: the champion, and a few more that are asked for by name, on the same cores."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from serving.engine import (
    CoreLease,
    Engine,
    EngineError,
    EngineSettings,
    ModelLoadError,
    Request,
    Sampling,
)
from serving.engine.gguf_check import trained_tokens
from serving.expectations import check
from serving.http.metrics import added, without_gauges
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
    last_used_s: float = field(default_factory=time.monotonic)
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
        self._open: list[LoadedModel] = []
        """Those above, and those that were replaced and are still answering."""
        self._closed = ""
        """What the engines before these have done, as Prometheus text."""
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

    def metrics(self) -> str:
        """Of all engines together, as Prometheus text; no counter falls when one is closed."""
        with self._lock:
            return added([*(_metrics(model) for model in self._open), self._closed])

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
                name = champion_name(wanted)
                new = self._found(wanted) or self._load(name, wanted.model, wanted.sha256)
            except Exception as error:
                self.last_error = str(error) or type(error).__name__
                raise
            with self._lock:
                self._others.pop(new.sha256, None)
                new.name, self._champion, old = name, new, self._champion
            self.last_error, self.num_swaps = None, self.num_swaps + (old is not None)
        if old is not None:
            log.info("champion %s replaces %s", new.sha256[:12], old.sha256[:12])
            self._retire(old)
        return True

    def enter(self, name: str | None) -> LoadedModel:
        """The model of that name, which stays open until `leave`; loads it if need be, which blocks.

        Raises NotReady, UnknownModel, RegistryError or EngineError.
        """
        if (held := self.enter_loaded(name)) is not None:
            return held
        with self._loading:
            if (held := self.enter_loaded(name)) is not None:
                return held
            assert name is not None
            entry = find(self._registry, name)
            new = self._load(entry.name, entry.model, entry.sha256)
            with self._lock:
                self._others[new.sha256] = _count_in(new)
                evicted = self._evict(beside=new)
        for model in evicted:
            self._retire(model)
        return new

    def enter_loaded(self, name: str | None) -> LoadedModel | None:
        """As `enter`, but at once: None for a model that would have to be loaded."""
        with self._lock:
            held = self._held(name)
            return None if held is None else _count_in(held)

    def leave(self, model: LoadedModel) -> None:
        """The call that entered is over; a model that was replaced meanwhile closes after its last one."""
        with self._lock:
            model.num_calls -= 1
            model.last_used_s = time.monotonic()
            over = model.retired and model.num_calls == 0
        if over:
            self._close(model)

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
            models, self._champion, self._others = list(self._open), None, {}
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

    def _evict(self, *, beside: LoadedModel) -> list[LoadedModel]:
        """The least recently used models beyond the limit; not the one that is being entered."""
        others = [model for model in self._others.values() if model is not beside]
        by_age = sorted(others, key=lambda model: (model.num_calls > 0, model.last_used_s))
        evicted = by_age[: max(0, len(self._others) - (self._max_models - 1))]
        for model in evicted:
            del self._others[model.sha256]
        return evicted

    def _retire(self, model: LoadedModel) -> None:
        with self._lock:
            model.retired = True
            over = model.num_calls == 0
        if over:
            self._close(model)

    def _close(self, model: LoadedModel) -> None:
        """On a thread of its own: closing waits for the engine's threads."""
        with self._lock:
            self._open.remove(model)
            self._closed = added([self._closed, without_gauges(_metrics(model))])
        log.info("model %s (%s) is closed", model.name, model.sha256[:12])
        threading.Thread(target=model.engine.close, name="close-engine", daemon=True).start()

    # Loading.

    def _found(self, wanted: Champion) -> LoadedModel | None:
        """The next champion, if it is loaded by another name and says what was recorded when it was promoted.

        Raises RegistryError.
        """
        with self._lock:
            found = self._others.get(wanted.sha256)
            if found is None:
                return None
            _count_in(found)
        try:
            with _told(wanted.model):
                expected = expected_here(wanted.model)
                if expected.is_file():
                    check(found.engine, expected)
        except EngineError as error:
            log.error("model %s is loaded anew: %s", found.name, error)
            self.drop(found)
            return None
        finally:
            self.leave(found)
        return found

    def _load(self, name: str, path: Path, sha256: str) -> LoadedModel:
        """Fetch if need be, verify, load, and generate what was recorded; then it is warm. Blocks.

        Raises RegistryError or EngineError.
        """
        with _told(path):
            expected, file = _sound_files(path, sha256)
            engine = self._open_engine(file, within_training(self._settings, file), self._shared_lease())
            try:
                smoke(engine)
                if expected.is_file():
                    check(engine, expected)
            except BaseException:
                engine.close()
                raise
        log.info("model %s (%s) is loaded and has generated", name, sha256[:12])
        new = LoadedModel(name, sha256, engine)
        with self._lock:
            self._open.append(new)
        return new

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


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What a disk or a mount does not give, which may pass, is a RegistryError."""
    try:
        yield
    except OSError as error:
        raise RegistryError(f"{path}: {error.strerror or error or type(error).__name__}") from error


def _sound_files(path: Path, sha256: str) -> tuple[Path, Path]:
    """What the model said when it was promoted, and the model, both on this node. Raises RegistryError."""
    expected, model = expected_here(path), model_here(path, sha256)
    verify(model, sha256)
    return expected, model


def within_training(settings: EngineSettings, model: Path) -> EngineSettings:
    """With the context that the model was trained for, where that is shorter than what nobody has set."""
    try:
        trained = trained_tokens(model)
    except ModelLoadError:  # so says the engine, and why
        return settings
    if "context_tokens" in settings.model_fields_set or trained is None or trained >= settings.context_tokens:
        return settings
    log.warning("%s: its context is the %d tokens that it was trained for", model, trained)
    return settings.model_copy(update={"context_tokens": trained})


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
    model.last_used_s = time.monotonic()
    return model


def _metrics(model: LoadedModel) -> str:
    return model.engine.metrics().to_prometheus("engine")


__all__ = [
    "LoadedModel",
    "ModelHost",
    "NotReady",
    "UnknownModel",
    "champion_name",
    "smoke",
    "within_training",
]
