"""What every request passes before anything else looks at it.

Checks the key, drops headers by which a client could lift Serve's limits, bounds header and body, cuts off
clients that do not read, and puts plain-text errors (Serve's own) into OpenAI's form. Pure ASGI: it runs
around the application and in Serve's proxies, which find it through `serving.cluster_env`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from serving.http.access import Access, Scope, require_own_page
from serving.http.errors import ApiError, for_status
from serving.settings import GateSettings

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/health", "/-/healthz"})
"""Answered without a key: for load balancers and probes."""

EXPOSED = ("retry-after", "x-model-sha256", "x-request-id")
"""Headers of a reply that a page of another origin may read, if it may call."""

_LIFTING = frozenset(
    {
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"serve_multiplexed_model_id",
        b"serve-multiplexed-model-id",
    }
)


def proxy_middlewares() -> list[Any]:
    """For Serve's proxies."""
    from starlette.middleware import Middleware

    settings = GateSettings.from_env()
    try:
        from serving.http.wire import install
    except ImportError as error:
        log.info("uvicorn's own bound on headers holds: %s", error)
    else:
        install(settings)
    return [Middleware(Gate, settings=settings)]


class Gate:
    """ASGI middleware."""

    def __init__(self, app: App, settings: GateSettings, origins: Collection[str] | None = None) -> None:
        """`origins`: of other web pages that may call; None, in Serve's proxies: the application looks at
        them, and the gate's own errors are shown to pages of the origins in the settings."""
        self._app = app
        self._origins = origins
        self._shown_to = settings.cors_origins if origins is None else ()
        self._settings = settings
        self._access = Access(settings.api_keys_file)
        self._num_inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        send = _readable_by(self._shown_to, scope, send)
        try:
            inner = self._admit(scope)
        except ApiError as error:
            await _answer(send, error)
            return
        except Exception:
            log.exception("the gate fails on a request")
            await _answer(send, for_status(500))
            return
        exchange = _Exchange(receive, send, self._settings, with_body=scope["method"] != "HEAD")
        self._num_inside += 1
        try:
            await self._app(inner, exchange.receive, exchange.send)
        finally:
            self._num_inside -= 1

    def _admit(self, scope: Scope) -> Scope:
        """The scope as the application sees it. Raises ApiError."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if sum(len(name) + len(value) for name, value in headers) > self._settings.max_header_bytes:
            raise ApiError(431, "the request's headers are too long", code="headers_too_long")
        inner = {
            **scope,
            "headers": [pair for pair in headers if pair[0].lower() not in _LIFTING],
            "path": scope["path"].rstrip("/") or "/",
            "method": "GET" if scope["method"] == "HEAD" else scope["method"],
        }
        if inner["path"] not in OPEN_PATHS and not _is_preflight(scope):
            inner["serving.key"] = self._access.key_of(scope, dict(headers))
        if self._origins is not None:
            require_own_page(scope, dict(headers), self._origins)
        _check_length(dict(headers), self._settings.max_body_bytes)
        most = self._settings.max_inside
        if most is not None and self._num_inside >= most and scope["path"].startswith("/v1/"):
            raise for_status(429, {"retry-after": "1"})
        return inner


class _Exchange:
    """One request's messages, on their way through the gate."""

    def __init__(self, receive: Receive, send: Send, settings: GateSettings, *, with_body: bool) -> None:
        self._receive, self._send, self._settings = receive, send, settings
        self._with_body = with_body
        self._until_s: float | None = asyncio.get_running_loop().time() + settings.read_timeout_s
        self._num_bytes = 0
        self._over = False
        self._replaced = False

    async def receive(self) -> Message:
        if self._over:
            return {"type": "http.disconnect"}
        try:
            async with asyncio.timeout_at(self._until_s):
                message = await self._receive()
        except TimeoutError:
            return await self._give_up(for_status(408))
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self._settings.max_body_bytes:
            return await self._give_up(_too_long(self._settings.max_body_bytes))
        if not message.get("more_body", False):
            self._until_s = None
        return message

    async def _give_up(self, error: ApiError) -> Message:
        self._over = True
        await _answer(self._send, error)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self._over:
            return
        if message["type"] == "http.response.start" and _is_bare_error(message):
            self._replaced = True
            await _answer(self._send, for_status(int(message["status"]), _kept_headers(message)))
        elif not self._replaced:
            if not self._with_body and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            async with asyncio.timeout(self._settings.write_timeout_s):
                await self._send(message)


def _readable_by(origins: Collection[str], scope: Scope, send: Send) -> Send:
    """Lets a page of these origins read what the application has not written: errors on the way to it."""
    origin = dict(scope["headers"]).get(b"origin", b"")
    if origin.decode("latin-1") not in origins:
        return send

    async def send_to_page(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            if all(name.lower() != b"access-control-allow-origin" for name, _ in headers):
                exposed = ", ".join(EXPOSED).encode()
                headers += [(b"access-control-allow-origin", origin), (b"vary", b"Origin")]
                headers += [(b"access-control-expose-headers", exposed)]
            message = {**message, "headers": headers}
        await send(message)

    return send_to_page


def _is_preflight(scope: Scope) -> bool:
    """A browser's question whether a page of another origin may call; it cannot carry a key."""
    return bool(scope["method"] == "OPTIONS" and scope["path"].startswith("/v1/"))


def _check_length(headers: dict[bytes, bytes], max_bytes: int) -> None:
    length = headers.get(b"content-length", b"0")
    if not length.isdigit():
        raise ApiError(400, "content-length is not a number", code="bad_header")
    if len(length) > 18 or int(length) > max_bytes:
        raise _too_long(max_bytes)


def _too_long(max_bytes: int) -> ApiError:
    return ApiError(413, f"the request's body is longer than {max_bytes} bytes", code="body_too_long")


def _is_bare_error(message: Message) -> bool:
    if int(message["status"]) < 400:
        return False
    kinds = [value for name, value in message.get("headers", ()) if name.lower() == b"content-type"]
    return not any(kind.startswith(b"application/json") for kind in kinds)


def _kept_headers(message: Message) -> dict[str, str]:
    kept = {b"retry-after", b"allow"}
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in message.get("headers", ())
        if name.lower() in kept
    }


async def _answer(send: Send, error: ApiError) -> None:
    body = error.to_bytes()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",  # what is left of the request's body is not read
        **error.headers,
    }
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
