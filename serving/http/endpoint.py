"""A request's way: limits, checks, admission, answer; whole or as a stream."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from serving.admission import Admission, RateLimit, Refused
from serving.calls import Backend, Call, Called, Ended, Event, Failed, Text
from serving.http.errors import ApiError, for_status
from serving.http.event_stream import EventStream, disconnected, event
from serving.http.metrics import HttpMetrics
from serving.http.strict_json import parse_object
from serving.intake import chat_call, completion_call
from serving.keys import ApiKey
from serving.lengths import check_lengths
from serving.parsing import parse
from serving.protocol import ChatRequest, CompletionRequest, GenerationRequest
from serving.replies import Reply
from serving.responses.intake import read_request, response_call
from serving.responses.reply import ResponseReply
from serving.settings import ServingSettings

log = logging.getLogger("serving.requests")

Route = Literal["chat", "completion", "response"]
AnyReply = Reply | ResponseReply

_IDS: dict[Route, str] = {"chat": "chatcmpl-", "completion": "cmpl-", "response": "resp_"}
_GRACE_S = 5.0
"""How long after the deadline the engine's own end of the request is waited for."""


@dataclass
class _Visit:
    """One request from arrival to its log line."""

    id: str
    route: Route
    caller: str
    began_s: float
    leave: ExitStack = field(default_factory=ExitStack)
    reply: AnyReply | None = None
    first_s: float | None = None


class Endpoint:
    """The routes that generate. One per process, on one event loop."""

    def __init__(self, backend: Backend, settings: ServingSettings, *, capacity: int) -> None:
        self._backend = backend
        self._settings = settings
        self._rates = RateLimit()
        self.admission = Admission(capacity)
        self.metrics = HttpMetrics()

    async def chat(self, request: Request) -> Response:
        return await self._handle(request, "chat")

    async def completion(self, request: Request) -> Response:
        return await self._handle(request, "completion")

    async def response(self, request: Request) -> Response:
        return await self._handle(request, "response")

    async def _handle(self, request: Request, route: Route) -> Response:
        key: ApiKey | None = request.scope.get("serving.key")
        visit = _Visit(_new_id(route), route, key.name if key else "local", time.monotonic())
        try:
            self._rates.take(visit.caller, _rate(key, self._settings))
            reply = await self._read(request, visit)
            visit.leave.enter_context(self.admission.enter(_num_answers(reply.call)))
            return await self._answer(request, visit, reply)
        except Refused as refused:
            seconds = str(max(1, math.ceil(refused.retry_after_s)))
            error = ApiError(429, str(refused), code="rate_limit_exceeded", headers={"retry-after": seconds})
            self._finish(visit, error.status)
            raise error from refused
        except ApiError as error:
            self._finish(visit, error.status)
            raise
        except asyncio.CancelledError:  # so Serve ends a request whose client goes before the reply begins
            self.metrics.disconnects += 1
            self._finish(visit, 499)
            raise
        except BaseException:
            self._finish(visit, 500)
            raise

    async def _read(self, request: Request, visit: _Visit) -> AnyReply:
        """What is asked for, as the reply that is still to be filled."""
        body = await read_object(request)
        limits, deadline_s = self._settings.limits, self._settings.request_timeout_s
        check_lengths(body, limits)
        if visit.route == "response":
            wanted = read_request(body)
            call = response_call(wanted, limits, call_id=visit.id, deadline_s=deadline_s)
            return ResponseReply(call=call, asked=wanted)
        asked: ChatRequest | CompletionRequest
        if visit.route == "chat":
            asked = parse(ChatRequest, body)
            call = chat_call(asked, limits, call_id=visit.id, deadline_s=deadline_s)
        else:
            asked = parse(CompletionRequest, body)
            call = completion_call(asked, limits, call_id=visit.id, deadline_s=deadline_s)
        return Reply(route=visit.route, call=call, with_usage=_with_usage(asked))

    async def _answer(self, request: Request, visit: _Visit, reply: AnyReply) -> Response:
        visit.reply, call = reply, reply.call
        bundles = self._bundles(call)
        first = asyncio.ensure_future(anext(bundles))
        gone = asyncio.ensure_future(disconnected(request.receive))
        try:
            await asyncio.wait({first, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                self.metrics.disconnects += 1
                raise ApiError(499, "the client has gone", code="disconnected")
            events = first.result()
            self._see(visit, reply, events)
        except BaseException:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await bundles.aclose()
            raise
        finally:
            gone.cancel()
        headers = {"x-model-sha256": reply.sha256}
        if call.stream:
            return self._stream(visit, reply, events, bundles, headers)
        await bundles.aclose()
        self._finish(visit, 200)
        return JSONResponse(reply.whole(events), headers=headers)

    async def _bundles(self, call: Call) -> AsyncGenerator[list[Event], None]:
        """The backend's events, under the server's own deadline. Raises ApiError."""
        bundles = self._backend.generate(call)
        until_s = asyncio.get_running_loop().time() + call.deadline_s + _GRACE_S
        try:
            while True:
                async with asyncio.timeout_at(until_s):
                    events = await anext(bundles, None)
                if events is None:
                    return
                yield events
        except TimeoutError as error:
            raise ApiError(504, "the request took longer than the server allows", code="timeout") from error
        finally:
            await bundles.aclose()

    def _see(self, visit: _Visit, reply: AnyReply, events: list[Event]) -> None:
        for each in events:
            if visit.first_s is None and isinstance(each, Text | Called | Ended):
                visit.first_s = time.monotonic() - visit.began_s
            if isinstance(each, Failed):
                headers = {"retry-after": "1"} if each.status in (429, 503) else {}
                param = reply.param(each.param)
                raise ApiError(each.status, each.message, code=each.code, param=param, headers=headers)
            reply.see(each)

    # Streams.

    def _stream(
        self,
        visit: _Visit,
        reply: AnyReply,
        events: list[Event],
        bundles: AsyncGenerator[list[Event], None],
        headers: dict[str, str],
    ) -> Response:
        status = 200

        async def parts() -> AsyncGenerator[bytes, None]:
            nonlocal status
            try:
                yield _written(reply.opening()) + _parts(reply, events)
                async for more in bundles:
                    self._see(visit, reply, more)
                    yield _parts(reply, more)
                yield _written(reply.closing()) + reply.end
            except ApiError as error:  # the status line has gone: the error is the last event, without [DONE]
                status = error.status
                yield _written(reply.broken(error))
            except Exception:
                log.exception("call %s", visit.id)
                status = 500
                yield _written(reply.broken(for_status(500)))

        async def on_end(gone: bool) -> None:
            await bundles.aclose()
            self.metrics.disconnects += gone
            self._finish(visit, 499 if gone else status)

        return EventStream(parts(), headers=headers, on_end=on_end)

    def _finish(self, visit: _Visit, status: int) -> None:
        """Give the place back, count, and log; what was said is not logged."""
        visit.leave.close()
        seconds = time.monotonic() - visit.began_s
        self.metrics.requests[visit.route, status] += 1
        self.metrics.duration.add(seconds)
        if visit.first_s is not None:
            self.metrics.first_token.add(visit.first_s)
        reply = visit.reply
        line = {
            "id": visit.id,
            "route": visit.route,
            "caller": visit.caller,
            "status": status,
            "model": reply.model if reply else "",
            "model_sha256": reply.sha256 if reply else "",
            "prompt_tokens": reply.num_prompt_tokens if reply else 0,
            "answer_tokens": reply.num_answer_tokens if reply else 0,
            "first_event_s": None if visit.first_s is None else round(visit.first_s, 4),
            "seconds": round(seconds, 4),
        }
        log.info("%s", json.dumps(line))


async def read_object(request: Request) -> dict[str, Any]:
    """The request's body. Raises ApiError 400."""
    try:
        return parse_object(await request.body())
    except ClientDisconnect as error:
        raise ApiError(400, "the request's body is incomplete", code="incomplete_body") from error


def _parts(reply: AnyReply, events: list[Event]) -> bytes:
    """The events of one message to the client."""
    return b"".join(_written(reply.parts(each)) for each in events)


def _written(parts: list[dict[str, Any]]) -> bytes:
    return b"".join(map(event, parts))


def _with_usage(asked: GenerationRequest) -> bool:
    """Raises ApiError 400 for options of a stream that is none."""
    if asked.stream_options is not None and not asked.stream:
        raise ApiError(400, "stream_options needs stream: true", param="stream_options", code="invalid_value")
    return bool(asked.stream_options and asked.stream_options.include_usage)


def _new_id(route: Route) -> str:
    return f"{_IDS[route]}{uuid.uuid4().hex}"


def _rate(key: ApiKey | None, settings: ServingSettings) -> int | None:
    return key.requests_per_minute if key and key.requests_per_minute else settings.requests_per_minute


def _num_answers(call: Call) -> int:
    return call.num_choices * max(1, len(call.prompts))
