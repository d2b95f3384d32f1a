"""Errors as OpenAI's clients expect them: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import json
from collections.abc import Mapping

INVALID = "invalid_request_error"
SERVER = "server_error"
LIMIT = "rate_limit_error"

_MAX_CHARACTERS = 500


class ApiError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str | None = None,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind or (SERVER if status >= 500 else LIMIT if status == 429 else INVALID)
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        return {
            "error": {
                "message": printable(str(self)),
                "type": self.kind,
                "param": None if self.param is None else printable(self.param)[:100],
                "code": self.code,
            }
        }

    def to_bytes(self) -> bytes:
        return json.dumps(self.body).encode()


def printable(text: str) -> str:
    """At most 500 characters, none of them a control character or half of one."""
    cut = text if len(text) <= _MAX_CHARACTERS else text[: _MAX_CHARACTERS - 1] + "…"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in cut)


def for_status(status: int, headers: Mapping[str, str] | None = None) -> ApiError:
    """The error for a bare HTTP status, such as Serve's proxy answers with."""
    message, code = _BARE.get(status, ("the request was refused" if status < 500 else "internal error", None))
    return ApiError(status, message, code=code, headers=headers)


_BARE: dict[int, tuple[str, str | None]] = {
    404: ("there is nothing at this path", "not_found"),
    405: ("this path does not take this method", "method_not_allowed"),
    408: ("the request took too long", "timeout"),
    429: ("too many requests at once: try again later", "overloaded"),
    500: ("internal error", "internal_error"),
    503: ("no model is ready to answer: try again later", "unavailable"),
    504: ("the request took too long", "timeout"),
}
