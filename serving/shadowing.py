"""Has a second model answer some of the champion's calls, in the background of a replica."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from serving.calls import Call
from serving.engine import EngineError, RequestError, Result, Stream
from serving.host import LoadedModel, ModelHost, NotReady
from serving.names import UnknownModel
from serving.registry import Registry, RegistryError
from serving.shadow import Shadow, row_of
from serving.shadow_files import append

log = logging.getLogger(__name__)

Answerer = Callable[[Call], Awaitable[tuple[str, Result]]]
"""Answers a call apart from the others; gives the model's sha256 and the first choice."""


class Shadower:
    """At most one answer at a time, and none while clients wait for a slot. One event loop calls it."""

    def __init__(self, host: ModelHost, registry: Registry, answer: Answerer) -> None:
        self._host = host
        self._registry = registry
        self._answer = answer
        self._task: asyncio.Task[None] | None = None
        self._logged: str | None = None
        self.rule: Shadow | None = None

    def see(self, call: Call, model: LoadedModel, streams: Sequence[Stream]) -> None:
        """A call has been answered, or given up."""
        if self.rule is None or not self.rule.takes(call) or model is not self._host.champion:
            return
        if (self._task is not None and not self._task.done()) or not all(stream.done for stream in streams):
            return
        result = streams[0].result(0)
        if result.finish_reason not in ("stop", "length") or model.engine.metrics().requests_queued:
            return
        again = replace(call, model=self.rule.model, id=f"{call.id}-shadow", stream=False)
        self._task = asyncio.ensure_future(self._run(call, again, model.sha256, result))

    async def _run(self, call: Call, again: Call, champion: str, result: Result) -> None:
        try:
            shadow = await self._answer(again)
            row = row_of(call, {"champion": (champion, result), "shadow": shadow})
            await asyncio.to_thread(append, self._registry.root, row)
            self._logged = None
        except (UnknownModel, NotReady, RegistryError, EngineError, RequestError, OSError) as error:
            if self._logged != (said := f"{type(error).__name__}: {error}"):
                log.error("no shadow answer of %s: %s", again.model, said)
            self._logged = said
