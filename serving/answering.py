"""Calls answered by a model host in this process: render, submit, and bundle what comes back."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from serving.calls import (
    Alternative,
    Call,
    ChosenToken,
    Ended,
    Event,
    Failed,
    Health,
    ModelCard,
    Started,
    Text,
)
from serving.engine import (
    Engine,
    EngineError,
    ModelMismatch,
    Request,
    RequestError,
    Result,
    Stream,
    TokenLogprob,
)
from serving.host import LoadedModel, ModelHost, NotReady
from serving.names import UnknownModel, cards
from serving.registry import Registry, RegistryError

log = logging.getLogger(__name__)
T = TypeVar("T")

_MAX_BUNDLE_S = 0.1
_BUNDLE_S_PER_CALL = 0.005


class HostBackend:
    """A `serving.calls.Backend` over a ModelHost."""

    def __init__(self, host: ModelHost, registry: Registry) -> None:
        self._host = host
        self._registry = registry
        self._num_calls = 0
        self._submitters = ThreadPoolExecutor(4, "submit")
        self._loader = ThreadPoolExecutor(1, "load")  # of its own: a model that loads holds up no other call

    async def generate(self, call: Call) -> AsyncGenerator[list[Event], None]:
        self._num_calls += 1
        try:
            async with contextlib.aclosing(self._answer(call)) as bundles:
                async for events in bundles:
                    yield events
        except UnknownModel:
            yield [Failed(404, "there is no such model: see /v1/models", "model_not_found", "model")]
        except RequestError as error:
            yield [_refusal(error)]
        except (NotReady, ModelMismatch, RegistryError, EngineError) as error:
            log.error("call %s: %s", call.id, error)
            yield [Failed(503, "no model is ready to answer: try again later", "unavailable")]
        finally:
            self._num_calls -= 1

    async def models(self) -> list[ModelCard]:
        return await asyncio.to_thread(cards, self._registry)

    async def health(self) -> Health:
        champion = self._host.champion
        if champion is None:
            return Health(False, None, self._host.last_error or "no model is loaded yet")
        return Health(True, champion.sha256, self._host.last_error or "ok")

    async def metrics(self) -> str:
        parts = []
        champion = self._host.champion
        if champion is not None:
            parts = [champion.engine.metrics().to_prometheus("engine").rstrip()]
            parts += [
                "# TYPE serving_champion_info gauge",
                f'serving_champion_info{{sha256="{champion.sha256}"}} 1',
            ]
        parts += ["# TYPE serving_swaps_total counter", f"serving_swaps_total {self._host.num_swaps}"]
        parts += ["# TYPE serving_loaded_models gauge", f"serving_loaded_models {len(self._host.loaded)}"]
        return "\n".join(parts) + "\n"

    async def _answer(self, call: Call) -> AsyncGenerator[list[Event], None]:
        model = await self._enter(call.model)
        try:
            submit = functools.partial(_submit, model.engine, call)
            streams = await _finish_in(self._submitters, submit, undo=_cancel)
            try:
                async for events in self._events(call, model, streams):
                    yield events
            finally:
                _cancel(streams)
        finally:
            self._host.leave(model)

    async def _enter(self, name: str | None) -> LoadedModel:
        if self._host.ready(name):
            return self._host.enter(name)
        return await _finish_in(
            self._loader, functools.partial(self._host.enter, name), undo=self._host.leave
        )

    async def _events(
        self, call: Call, model: LoadedModel, streams: list[Stream]
    ) -> AsyncIterator[list[Event]]:
        num_prompt_tokens = sum(len(stream.request.prompt) for stream in streams[:: call.num_choices])
        events: list[Event] = [Started(model.name, model.sha256, num_prompt_tokens)]
        if call.stream:
            yield events
            async for events in self._bundled(model.engine, streams):
                yield events
            return
        for choice, stream in enumerate(streams):
            events += _ending(choice, model.engine, await stream.result_async(), with_text=True)
        yield events

    async def _bundled(self, engine: Engine, streams: list[Stream]) -> AsyncIterator[list[Event]]:
        """The first tokens at once, later ones together: every message to a client costs more than a token does,
        so the busier the replica, the more a message carries."""
        events: list[Event] = []
        arrived = asyncio.Event()
        pumps = [
            asyncio.ensure_future(_pump(choice, engine, stream, events, arrived))
            for choice, stream in enumerate(streams)
        ]
        try:
            while not all(pump.done() for pump in pumps) or events:
                await arrived.wait()
                arrived.clear()
                bundle = events.copy()
                events.clear()
                yield bundle
                await asyncio.wait(pumps, timeout=min(_MAX_BUNDLE_S, _BUNDLE_S_PER_CALL * self._num_calls))
        finally:
            for pump in pumps:
                pump.cancel()


async def _pump(
    choice: int, engine: Engine, stream: Stream, events: list[Event], arrived: asyncio.Event
) -> None:
    async for delta in stream:
        events.append(Text(choice, delta.text, _chosen(engine, delta.logprobs)))
        arrived.set()
    events += _ending(choice, engine, await stream.result_async(), with_text=False)
    arrived.set()


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


def _submit(engine: Engine, call: Call) -> list[Stream]:
    """One request per prompt and choice, all or none. Raises RequestError or ModelMismatch."""
    prompts = list(_prompts(engine, call))
    streams: list[Stream] = []
    try:
        for prompt in prompts:
            for index in range(call.num_choices):
                streams.append(engine.submit(_request(engine, call, prompt, index)))
    except BaseException:
        _cancel(streams)
        raise
    return streams


def _prompts(engine: Engine, call: Call) -> Iterator[tuple[int, ...]]:
    if call.messages is not None:
        yield engine.chat.render(call.messages)
    for prompt in call.prompts:
        yield tuple(engine.tokenize(prompt, add_bos=True)) if isinstance(prompt, str) else prompt


def _request(engine: Engine, call: Call, prompt: tuple[int, ...], index: int) -> Request:
    room = max(1, engine.context_tokens - len(prompt))
    sampling = replace(
        call.sampling,
        seed=(call.sampling.seed + index) % 2**32,
        max_tokens=room if call.max_tokens is None else min(call.max_tokens, room),
    )
    return Request(f"{call.id}-{index}", prompt, sampling, deadline_s=call.deadline_s)


def _cancel(streams: list[Stream]) -> None:
    for stream in streams:
        stream.cancel()


def _ending(choice: int, engine: Engine, result: Result, *, with_text: bool) -> list[Event]:
    if result.finish_reason == "error":
        log.error("request %s: %s", result.id, result.error)
        return [Failed(500, "the model failed on this request", result.error_code or "engine_failed")]
    if result.finish_reason == "timeout":
        return [Failed(504, "the request took longer than the server allows", "timeout")]
    if result.finish_reason == "cancelled":
        return [Failed(503, "the replica is shutting down: try again", "unavailable")]
    ended = Ended(choice, result.finish_reason, result.num_answer_tokens, result.num_cached_tokens)
    return [Text(choice, result.text, _chosen(engine, result.logprobs)), ended] if with_text else [ended]


def _refusal(error: RequestError) -> Failed:
    if error.code == "queue_full":
        return Failed(429, "too many requests are waiting: try again later", "overloaded")
    return Failed(400, str(error), error.code, _PARAMS.get(error.code))


_PARAMS = {
    "context_length_exceeded": "messages",
    "empty_prompt": "prompt",
    "bad_token": "prompt",
    "bad_messages": "messages",
    "invalid_text": "messages",
    "bad_json_schema": "response_format",
    "bad_grammar": "response_format",
}


def _chosen(engine: Engine, logprobs: tuple[TokenLogprob, ...] | None) -> tuple[ChosenToken, ...] | None:
    if logprobs is None:
        return None
    return tuple(
        ChosenToken(
            _alternative(engine, each.token_id, each.logprob),
            tuple(_alternative(engine, token, logprob) for token, logprob in each.top.items()),
        )
        for each in logprobs
    )


def _alternative(engine: Engine, token: int, logprob: float) -> Alternative:
    text = engine.tokenizer.detokenize([token], special=True)
    return Alternative(text, None if "\ufffd" in text else text.encode(), logprob)
