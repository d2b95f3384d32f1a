"""The models of one replica: the champion, and a few more that are asked for by name, on the same cores."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from serving.backoff import LoadFailures
from serving.deaths import EngineDeaths
from serving.engine import CoreLease, CoresUnavailable, Engine, EngineError, EngineSettings
from serving.http.metrics import added, without_gauges
from serving.loading import Loader, check_as_promoted
from serving.names import Entry, UnknownModel, champion_name, find
from serving.registry import Champion, Registry, RegistryError

log = logging.getLogger(__name__)


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
        deaths: EngineDeaths | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`deaths`: where it is noted which champion this process has, should it die with it."""
        self._registry = registry
        self._max_models = self._max_asked_for = max_models
        self._loader = Loader(settings, open_engine)
        self._failures = LoadFailures(clock)
        self._deaths = deaths
        self._lock = threading.RLock()
        self._loading = threading.Lock()
        self._history: tuple[Champion, ...] = ()
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
        return self._loader.settings

    @property
    def history(self) -> tuple[Champion, ...]:
        """The champion and the ones before it, as the registry had them when it was looked at last.

        Whoever answers reads this: a registry on a mount that hangs holds up nobody but `follow`.
        """
        return self._history

    @property
    def champion(self) -> LoadedModel | None:
        """The model that answers calls without a name: the registry's champion, or one before it where that
        cannot be served here."""
        return self._champion

    @property
    def is_behind(self) -> bool:
        """Whether another model than the registry's champion answers."""
        wanted, served = self._history[:1], self._champion
        return bool(wanted) and served is not None and wanted[0].sha256 != served.sha256

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
        fit to serve; the old one then goes on or, where there is none, the newest before it that is sound.
        """
        with self._loading:
            try:
                changed = self._follow()
            except Exception as error:
                self.last_error = str(error) or type(error).__name__
                raise
            self.last_error = None
            return changed

    def _follow(self) -> bool:
        while True:
            wanted = self._look()
            if self._champion is not None and self._champion.sha256 == wanted.sha256:
                return False
            try:
                new = self._taken(wanted)
            except CoresUnavailable:  # no other model would find any
                raise
            except Exception:
                if self._champion is None:
                    self._fall_back(wanted)
                raise
            if self._is_still(wanted):
                self._swap(new, champion_name(wanted))
                return True
            log.warning("champion %s was replaced while it was loaded", wanted.sha256[:12])
            if self._others.get(wanted.sha256) is not new:
                self._retire(new)

    def _look(self) -> Champion:
        """The registry's champion. Raises NotReady or RegistryError."""
        history = tuple(self._registry.history())
        if history[:1] != self._history[:1]:
            for each in history[:1]:  # promoted anew, maybe because it was damaged
                self._failures.forget(each.sha256)
            self._history = history
        if not history:
            raise NotReady(f"{self._registry.file}: there is no champion yet")
        return history[0]

    def _is_still(self, wanted: Champion) -> bool:
        """Whether it is still the champion: loading takes long, and it may be taken back meanwhile."""
        try:
            return self._look().sha256 == wanted.sha256
        except (RegistryError, NotReady):
            return True

    def _fall_back(self, wanted: Champion) -> None:
        """Serve the newest champion before this one that can be loaded, as nothing else is served."""
        for each in self._history[1:]:
            if each.sha256 == wanted.sha256:
                continue
            try:
                new = self._taken(each)
            except Exception as error:  # the next one may be sound
                log.error("nor can %s be served here: %s", champion_name(each), error)
                continue
            self._swap(new, champion_name(each))
            log.error("%s answers in place of %s", new.name, champion_name(wanted))
            return

    def _swap(self, new: LoadedModel, name: str) -> None:
        with self._lock:
            self._others.pop(new.sha256, None)
            new.name, self._champion, old = name, new, self._champion
        if old is not None:
            self.num_swaps += 1
            log.info("champion %s replaces %s", new.sha256[:12], old.sha256[:12])
            self._retire(old)

    def enter(self, name: str | None) -> LoadedModel:
        """The model of that name, which stays open until `leave`; loads it if need be, which blocks.

        Raises NotReady, UnknownModel, RegistryError or EngineError.
        """
        if (held := self.enter_loaded(name)) is not None:
            return held
        with self._loading:
            if (held := self.enter_loaded(name)) is not None:
                return held
            entry = self._entry(name)
            new = self._load(entry.name, entry.model, entry.sha256)
            with self._lock:
                self._others[new.sha256] = _count_in(new)
                evicted = self._evict(beside=new)
        for model in evicted:
            self._retire(model)
        return new

    def enter_loaded(self, name: str | None) -> LoadedModel | None:
        """As `enter`, but at once: None for a model that would have to be loaded.

        One that could not be loaded a moment ago raises what went wrong.
        """
        with self._lock:
            held = self._held(name)
            if held is not None:
                return _count_in(held)
        self._failures.check(self._entry(name).sha256)
        return None

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
            self._forget_death(model.sha256)
        self._loader.close()

    # Who is asked.

    def _held(self, name: str | None) -> LoadedModel | None:
        if self._champion is None:
            raise NotReady(self.last_error or "no model is loaded yet")
        if name in (None, "champion", self._champion.name):
            return self._champion
        sha256 = self._entry(name).sha256
        return self._champion if sha256 == self._champion.sha256 else self._others.get(sha256)

    def _entry(self, name: str | None) -> Entry:
        """Raises UnknownModel."""
        return find(self._history, name or "champion")

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
            if all(other.sha256 != model.sha256 for other in self._open):
                self._forget_death(model.sha256)
        log.info("model %s (%s) is closed", model.name, model.sha256[:12])
        threading.Thread(target=model.engine.close, name="close-engine", daemon=True).start()

    # Loading.

    def _taken(self, wanted: Champion) -> LoadedModel:
        """The model of a champion: as it is, where it is loaded by another name and sound, else loaded.

        Raises RegistryError or EngineError.
        """
        if self._deaths is not None:
            self._deaths.begin(wanted.sha256)
        try:
            return self._found(wanted) or self._load(champion_name(wanted), wanted.model, wanted.sha256)
        except Exception:
            self._forget_death(wanted.sha256)
            raise

    def _forget_death(self, sha256: str) -> None:
        if self._deaths is not None:
            self._deaths.end(sha256)

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
            check_as_promoted(found.engine, wanted.model)
        except EngineError as error:
            log.error("model %s is loaded anew: %s", found.name, error)
            self.drop(found)
            return None
        finally:
            self.leave(found)
        return found

    def _load(self, name: str, path: Path, sha256: str) -> LoadedModel:
        """Raises RegistryError or EngineError; at once, if it did a moment ago."""
        self._failures.check(sha256)
        try:
            engine = self._loader.load(path, sha256)
        except CoresUnavailable:  # through no fault of the model
            raise
        except Exception as error:
            self._failures.add(sha256, error)
            raise
        self._failures.forget(sha256)
        log.info("model %s (%s) is loaded and has generated", name, sha256[:12])
        new = LoadedModel(name, sha256, engine)
        with self._lock:
            self._open.append(new)
        return new


def _count_in(model: LoadedModel) -> LoadedModel:
    model.num_calls += 1
    model.last_used_s = time.monotonic()
    return model


def _metrics(model: LoadedModel) -> str:
    return model.engine.metrics().to_prometheus("engine")


__all__ = ["LoadedModel", "ModelHost", "NotReady", "UnknownModel"]
