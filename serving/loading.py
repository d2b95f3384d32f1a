"""From a model of the registry to an engine that has shown on this machine that it answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.engine import CoreLease, Engine, EngineError, EngineSettings, ModelLoadError, Request, Sampling
from serving.engine.gguf_check import trained_tokens
from serving.expectations import check
from serving.kept_models import expected_here, model_here, verify
from serving.registry import RegistryError

log = logging.getLogger(__name__)

_SMOKE_LIMIT_S = 60.0
_SMOKE_TOKENS = 8

OpenEngine = Callable[[Path, EngineSettings, CoreLease | None], Engine]


class Loader:
    """Opens a replica's engines, on the cores that the replica owns. One thread at a time."""

    def __init__(self, settings: EngineSettings, open_engine: OpenEngine) -> None:
        self.settings = settings
        self._open_engine = open_engine
        self._lease: CoreLease | None = None

    def load(self, path: Path, sha256: str) -> Engine:
        """Fetch if need be, verify, load, and generate what was recorded; then it is warm. Blocks.

        Raises RegistryError or EngineError.
        """
        with _told(path):
            expected, file = _sound_files(path, sha256)
            engine = self._open_engine(file, within_training(self.settings, file), self._shared_lease())
            try:
                smoke(engine)
                if expected.is_file():
                    check(engine, expected)
            except BaseException:
                engine.close()
                raise
        return engine

    def close(self) -> None:
        if self._lease is not None:
            self._lease.release()

    def _shared_lease(self) -> CoreLease:
        """The replica owns its cores once; its engines share them, so that a new one can warm up beside."""
        if self._lease is None:
            unpinned = not self.settings.pin
            self._lease = (
                CoreLease.unpinned()
                if unpinned
                else CoreLease.acquire(self.settings.cores, wait_s=self.settings.core_wait_s)
            )
        return CoreLease(self._lease.cpus, ())


def check_as_promoted(engine: Engine, path: Path) -> None:
    """Raises EngineError if the engine does not say what the model said when it was promoted, RegistryError
    if that cannot be read."""
    with _told(path):
        expected = expected_here(path)
        if expected.is_file():
            check(engine, expected)


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
