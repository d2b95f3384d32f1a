"""From JSON schemas to llama.cpp's grammars."""

from __future__ import annotations

import functools
import json

from serving.engine.errors import RequestError
from serving.engine.llamacpp.ambiguity import check_ways

MAX_COUNT = 1024
"""Of `minItems`, `maxLength` and their like; llama.cpp's parser takes less than 2000."""


@functools.lru_cache(maxsize=128)
def grammar_of_schema(schema: str) -> str:
    """A JSON schema as GBNF. Raises RequestError `bad_json_schema`.

    As in llama.cpp's own converter, what no grammar says well is let go without a word: bounds of fractions,
    uniqueness, conditions, names of properties by pattern. Objects have their properties in the schema's
    order, those that are required first, and others only if `additionalProperties` says so.
    """
    from serving.engine.llamacpp.schema_converter import Converter

    try:
        wanted = json.loads(schema)
        if not isinstance(wanted, dict | bool):
            raise ValueError("it must be an object")
        grammar = Converter(wanted).grammar()
        check_ways(grammar)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        AssertionError,
        OverflowError,
    ) as error:
        raise RequestError(
            "bad_json_schema", f"json_schema: it has a part that is not supported: {error}"[:300]
        ) from error
    return grammar
