"""The head of a request, bounded in size and time, in Serve's proxies.

ASGI sees a request once its head is complete. uvicorn's faster parser bounds neither the length of the head
nor the time it takes: a client could fill the memory with a header that never ends, or hold connections with
heads that never complete. Importing this module needs httptools; without it uvicorn takes h11, which has a
bound of its own.
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn.protocols.http.auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.http.errors import ApiError, for_status
from serving.settings import GateSettings


def install(settings: GateSettings) -> None:
    """Have the servers that this process starts from now on use the bounded protocol."""
    bounded = type("BoundedProtocol", (BoundedProtocol,), {"settings": settings})
    uvicorn.protocols.http.auto.AutoHTTPProtocol = bounded


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits; its errors have OpenAI's form."""

    settings = GateSettings()
    _read_bytes = 0
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._read_bytes = len(data)
        self._head_bytes += len(data)
        super().data_received(data)
        # A read may hold more than the head, but then the head is complete.
        if self._timer is not None and self._head_bytes > self.settings.max_header_bytes:
            self._refuse(ApiError(431, "the request's headers are too long", code="headers_too_long"))

    def on_message_begin(self) -> None:
        self._begin_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._end_head()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, msg, code="bad_http"))

    def _begin_head(self) -> None:
        self._end_head()
        self._head_bytes = self._read_bytes
        self._timer = self.loop.call_later(self.settings.read_timeout_s, self._refuse, for_status(408))

    def _end_head(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, error: ApiError) -> None:
        self._end_head()
        if not self.transport.is_closing():
            self.transport.write(_response(error))
            self.transport.close()


def _response(error: ApiError) -> bytes:
    body = error.to_bytes()
    head = f"HTTP/1.1 {error.status} Refused\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body
