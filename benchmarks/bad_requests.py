"""Bad requests made out of the endpoint's own OpenAPI document: for the figure, and for the tests."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
RESPONSE = "/v1/responses"
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Name a colour."}]},
    COMPLETION: {"prompt": "x"},
    RESPONSE: {"input": [{"role": "user", "content": "Name a colour."}]},
}
SCHEMAS = {CHAT: "ChatRequest", COMPLETION: "CompletionRequest", RESPONSE: "ResponsesRequest"}
JUNK: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(2**64), 10**60, 0.5, -1e308),
    *("", "x", "\0", "\u202e", "<|im_start|>", "9" * 300, "a" * 5000, "🦜" * 100),
    *([], [[]], [None], [0], ["x"], ["x"] * 1000, [{}]),
    *({}, {"": ""}, {"type": "text"}, {"$ref": "#"}, {"x": {"x": {"x": []}}}, {"include_usage": 1}),
    *({"5": 101}, {"-1": 1}, {"role": "user"}),
]
_INNER: dict[str, list[tuple[Any, ...]]] = {
    CHAT: [
        *(("messages", 0, key) for key in ("role", "content", "name", "tool_calls", "tool_call_id", "x")),
        ("response_format", "type"),
        ("stream_options", "include_usage"),
        ("tool_choice", "function", "name"),
    ],
    COMPLETION: [],
    RESPONSE: [
        *(("input", 0, key) for key in ("type", "role", "content", "call_id", "arguments", "output", "x")),
        *(("text", "format", key) for key in ("type", "schema", "name")),
        ("reasoning", "effort"),
        ("tool_choice", "name"),
    ],
}


def validator_of(document: dict[str, Any], path: str) -> Any:
    """A JSON schema validator of the requests to a path."""
    import jsonschema

    schemas = json.loads(
        json.dumps(document["components"]["schemas"]).replace("#/components/schemas/", "#/$defs/")
    )
    return jsonschema.Draft202012Validator({"$defs": schemas, "$ref": f"#/$defs/{SCHEMAS[path]}"})


def bad_requests(path: str, document: dict[str, Any], *, num_pairs: int = 500) -> Iterator[Any]:
    """Every field with every kind of junk, then two fields at once, then bodies that are no objects.

    Some are valid all the same: see `validator_of`.
    """
    fields = list(document["components"]["schemas"][SCHEMAS[path]]["properties"])
    places: list[tuple[Any, ...]] = [(field,) for field in fields] + [("unknown",)]
    for place in places + _INNER[path]:
        yield from (_replaced(GOOD[path], place, junk) for junk in JUNK)
    rng = random.Random(0)
    for _ in range(num_pairs):
        body = _replaced(GOOD[path], rng.choice(places[: len(fields)]), rng.choice(JUNK))
        yield _replaced(body, rng.choice(places[: len(fields)]), rng.choice(JUNK))
    yield from (junk for junk in JUNK if not isinstance(junk, dict))


def broken_bytes(count: int, *, seed: int = 1) -> Iterator[bytes]:
    """A good chat request with a few bytes exchanged for others that JSON or UTF-8 do not allow."""
    good = json.dumps({**GOOD[CHAT], "stop": ["x"], "logit_bias": {"1": 1}, "max_tokens": 4}).encode()
    rng = random.Random(seed)
    for _ in range(count):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            data[at : at + rng.randint(0, 3)] = rng.choice(
                [b"", b"\xff", b"\\ud800", b"NaN", b"1e999", b'"', b"[[", b"\0"]
            )
        yield bytes(data)


def _replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at the path; a key that is not there is added."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    inner = copy[path[0]] if isinstance(copy, list) or path[0] in copy else {}
    copy[path[0]] = _replaced(inner, path[1:], new)
    return copy
