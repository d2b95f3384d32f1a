"""Who may call: holders of a key, or, without keys, programs on this machine."""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Collection, MutableMapping
from pathlib import Path
from typing import Any

from serving.http.errors import ApiError
from serving.keys import ApiKey, KeyRing

Scope = MutableMapping[str, Any]

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_PAGES = frozenset({"/", "/docs"})
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})


class Access:
    """A key file that cannot be read lets nobody in."""

    def __init__(self, api_keys_file: str | None) -> None:
        self._keys = None if api_keys_file is None else KeyRing(Path(api_keys_file))

    def key_of(self, scope: Scope, headers: dict[bytes, bytes]) -> ApiKey | None:
        """The caller's key; None where none is needed. Raises ApiError 401."""
        if self._keys is None:
            _require_local(scope, headers)
            return None
        key = _key_of(headers.get(b"authorization", b"").decode("latin-1"))
        found = self._keys.find(key) if key is not None else None
        if found is None:
            # A browser asks for a page's key by itself if the page is protected by Basic.
            scheme = "Basic realm=serving" if scope["path"] in _PAGES else "Bearer"
            raise ApiError(
                401,
                "a valid API key is required",
                code="invalid_api_key",
                headers={"www-authenticate": scheme},
            )
        return found


def require_own_page(scope: Scope, headers: dict[bytes, bytes], origins: Collection[str]) -> None:
    """A foreign web page can have a browser here send requests, to which the browser adds the key by Basic:
    answers would be written and votes stored. Raises ApiError 403 unless the page's origin is allowed."""
    origin = headers.get(b"origin", b"").decode("latin-1")
    foreign = headers.get(b"sec-fetch-site", b"cross-site") not in (b"same-origin", b"none")
    explicit = headers.get(b"authorization", b"").lower().startswith(b"bearer ")
    if scope["method"] in _SAFE_METHODS or not origin or explicit or not foreign or origin in origins:
        return
    if origin.partition("://")[2] != headers.get(b"host", b"").decode("latin-1"):
        message = "a web page of another origin may not call: see cors_origins"
        raise ApiError(403, message, code="origin_not_allowed")


def _require_local(scope: Scope, headers: dict[bytes, bytes]) -> None:
    """Without keys only this machine's programs are answered, and no web page that a browser here shows."""
    client = scope.get("client")
    host = headers.get(b"host", b"localhost").decode("latin-1").lower()
    name = host if host.endswith("]") or host == "::1" else host.rsplit(":", 1)[0]
    if client is None or not _is_loopback(client[0]) or name not in _LOCAL_NAMES:
        message = "without API keys only clients on this machine are answered: set SERVING_API_KEYS_FILE"
        raise ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return bool((mapped or parsed).is_loopback)


def _key_of(authorization: str) -> str | None:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
        except ValueError:  # of the encoding, or of what is encoded
            return None
    return None
