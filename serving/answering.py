"""Calls answered by a model host in this process: render, submit, and bundle what comes back."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from serving.calls import (
    Call,
    Event,
    Failed,
    Health,
    ModelCard,
    Started,
    Text,
)
from serving.canary import Canary
from serving.canarying import CANNOT_SERVE, CanaryRouter
from serving.echo import echo_of, without_answer
from serving.engine import (
    Engine,
    EngineError,
    ModelMismatch,
    RequestError,
    Result,
    Stream,
)
from serving.events import chosen, ending, merged, refusal, with_calls
from serving.host import LoadedModel, ModelHost, NotReady
from serving.names import UnknownModel, cards
from serving.registry import Registry, RegistryError
from serving.shadowing import Shadower
from serving.submitting import cancel_all, readers_of, submit_all
from serving.taking_back import Taker

log = logging.getLogger(__name__)
T = TypeVar("T")

_MAX_BUNDLE_S = 0.2
_BUNDLE_S_PER_CALL = 0.0125


class HostBackend:
    """A `serving.calls.Backend` over a ModelHost."""

    def __init__(self, host: ModelHost, registry: Registry, taker: Taker | None = None) -> None:
        """`taker`: takes a new champion back when it is not fit; None: nobody does."""
        self._host = host
        self._taker = taker
        self.shadower = Shadower(host, registry, self._answer_apart)
        self._canary = CanaryRouter(host, self._load)
        self._num_calls = 0
        self.failure: str | None = None
        """Why this replica has to be replaced."""
        self._submitters = ThreadPoolExecutor(4, "submit")
        self._loader = ThreadPoolExecutor(1, "load")  # of its own: a model that loads holds up no other call

    async def generate(self, call: Call) -> AsyncGenerator[list[Event], None]:
        self._num_calls += 1
        try:
            async with contextlib.aclosing(self._routed(call)) as bundles:
                async for events in bundles:
                    yield events
        except UnknownModel:
            yield [Failed(404, "there is no such model: see /v1/models", "model_not_found", "model")]
        except RequestError as error:
            yield [refusal(error, call)]
        except (NotReady, ModelMismatch, RegistryError, EngineError) as error:
            log.error("call %s: %s", call.id, error)
            yield [Failed(503, "no model is ready to answer: try again later", "unavailable")]
        finally:
            self._num_calls -= 1

    async def set_canary(self, canary: Canary | None) -> None:
        """Load the canary's model, then give it its share."""
        await self._canary.set_rule(canary)

    async def models(self) -> list[ModelCard]:
        """Of the registry as it was read last."""
        return cards(self._host.history)

    async def health(self) -> Health:
        """Probes have no key: why something failed is in the log, not here."""
        champion = self._host.champion
        if champion is None:
            return Health(False, None, "there is no champion that can be served yet")
        behind = "the newest champion is not fit to serve: see the log" if self._host.last_error else "ok"
        return Health(self.failure is None, champion.sha256, self.failure or behind)

    async def metrics(self) -> str:
        parts = [self._host.metrics().rstrip()]
        champion = self._host.champion
        if champion is not None:
            parts += [
                "# TYPE serving_champion_info gauge",
                f'serving_champion_info{{sha256="{champion.sha256}"}} 1',
            ]
        parts += ["# TYPE serving_swaps_total counter", f"serving_swaps_total {self._host.num_swaps}"]
        parts += ["# TYPE serving_champion_behind gauge", f"serving_champion_behind {self._host.is_behind:d}"]
        parts += ["# TYPE serving_loaded_models gauge", f"serving_loaded_models {len(self._host.loaded)}"]
        return "\n".join(parts) + "\n"

    async def _routed(self, call: Call) -> AsyncGenerator[list[Event], None]:
        """The canary's answer, where it gets the call and can begin; else that of the model asked for."""
        canary, begun = await self._canary.model_for(call), False
        if canary is not None:
            try:
                async with contextlib.aclosing(self._answer(replace(call, model=canary))) as bundles:
                    async for events in bundles:
                        begun = True
                        yield events
                return
            except CANNOT_SERVE as error:
                if begun or isinstance(error, RequestError):
                    raise
                log.error("call %s: not from the canary %s: %s", call.id, canary, error)
        async with contextlib.aclosing(self._answer(call)) as bundles:
            async for events in bundles:
                yield events

    async def _answer(self, call: Call) -> AsyncGenerator[list[Event], None]:
        model = await self._enter(call.model)
        try:
            streams = await self._submit(model, call)
            try:
                async for events in self._events(call, model, streams):
                    yield events
            finally:
                cancel_all(streams)
                self.shadower.see(call, model, streams)
                if self._taker is not None:
                    self._taker.see(model, streams)
        finally:
            self._host.leave(model)

    async def _answer_apart(self, call: Call) -> tuple[str, Result]:
        model = await self._enter(call.model)
        try:
            streams = await self._submit(model, call)
            try:
                return model.sha256, await streams[0].result_async()
            finally:
                cancel_all(streams)
        finally:
            self._host.leave(model)

    async def _submit(self, model: LoadedModel, call: Call) -> list[Stream]:
        try:
            submit = functools.partial(submit_all, model.engine, call)
            streams = await _finish_in(self._submitters, submit, undo=cancel_all)
            if self._taker is not None:
                self._taker.began(model, streams)
            return streams
        except EngineError as error:
            if self._taker is not None:
                self._taker.refused(model, error)
            if isinstance(error, RequestError | ModelMismatch):
                raise
            if model is self._host.champion:
                self.failure = "the engine has failed"
            self._host.drop(model)
            raise

    async def _enter(self, name: str | None) -> LoadedModel:
        """A model that has to be loaded holds up nobody else."""
        held = self._host.enter_loaded(name)
        if held is not None:
            return held
        return await _finish_in(
            self._loader, functools.partial(self._host.enter, name), undo=self._host.leave
        )

    async def _load(self, name: str) -> None:
        self._host.leave(await self._enter(name))

    async def _events(
        self, call: Call, model: LoadedModel, streams: list[Stream]
    ) -> AsyncIterator[list[Event]]:
        readers = readers_of(model.engine, call)
        num_prompt_tokens = sum(len(stream.request.prompt) for stream in streams[:: call.num_choices])
        events: list[Event] = [Started(model.name, model.sha256, num_prompt_tokens)]
        if call.stream and call.max_tokens != 0:
            for choice, stream in enumerate(streams):
                events += echo_of(call, choice, model.engine, stream.request.prompt, None)
            yield events
            async for events in self._bundled(call, model.engine, streams):
                if bundle := merged(list(with_calls(events, readers))):
                    yield bundle
            return
        for choice, stream in enumerate(streams):
            result = await stream.result_async()
            if call.max_tokens == 0:
                result = without_answer(result)
            tokens = stream.request.prompt
            events += echo_of(call, choice, model.engine, tokens, result.prompt_logprobs)
            events += ending(call, choice, model.engine, result, with_text=True)
        yield merged(list(with_calls(events, readers)))

    async def _bundled(self, call: Call, engine: Engine, streams: list[Stream]) -> AsyncIterator[list[Event]]:
        """The first tokens at once, later ones together: a message to a client costs more than a token,
        so the busier the replica, the more a message carries."""
        ends = [asyncio.ensure_future(stream.result_async()) for stream in streams]
        unread = dict(enumerate(streams))
        try:
            while unread:
                await _first_readable(list(unread.values()))
                yield _read(call, engine, unread)
                await asyncio.wait(ends, timeout=min(_MAX_BUNDLE_S, _BUNDLE_S_PER_CALL * self._num_calls))
        finally:
            for end in ends:
                end.cancel()


async def _first_readable(streams: list[Stream]) -> None:
    if len(streams) == 1:
        await streams[0].readable()
        return
    waits = [asyncio.ensure_future(stream.readable()) for stream in streams]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _read(call: Call, engine: Engine, unread: dict[int, Stream]) -> list[Event]:
    """What the streams say since they were read last; those that have ended are taken out."""
    events: list[Event] = []
    for choice, stream in list(unread.items()):
        ended = stream.done  # asked first: nothing comes after the end
        events += [Text(choice, each.text, chosen(engine, each.logprobs)) for each in stream.take()]
        if ended:
            events += ending(call, choice, engine, stream.result(0), with_text=False)
            del unread[choice]
    return events


async def _finish_in(pool: Executor, work: Callable[[], T], *, undo: Callable[[T], None]) -> T:
    """The result of blocking work; if nobody waits for it any more, it is undone when it comes."""
    task = asyncio.get_running_loop().run_in_executor(pool, work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(
            lambda done: None if done.cancelled() or done.exception() else undo(done.result())
        )
        raise
