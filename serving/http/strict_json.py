"""JSON bodies from strangers."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from serving.http.errors import ApiError

_MAX_NUMBER_CHARACTERS = 64
_DIGITS = bytes.maketrans(b"123456789E", b"000000000e")


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object of valid Unicode and finite numbers. Raises ApiError 400, quoting nothing."""
    suspect = _may_have_large_numbers(data)
    try:
        value = json.loads(
            data.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_parse_float if suspect else None,
            parse_int=_parse_int if suspect else None,
        )
    except UnicodeDecodeError as error:
        raise _bad("the body is not UTF-8") from error
    except RecursionError as error:
        raise _bad("the body is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise _bad(f"the body is not JSON: {error.msg} at character {error.pos}") from error
    except _BadNumberError as error:
        raise _bad("the body has a number that is not finite or too long") from error
    if not isinstance(value, dict):
        raise _bad("the body must be a JSON object")
    if b"\\u" in data:
        _refuse_surrogates(value)
    return value


class _BadNumberError(Exception):
    pass


def _may_have_large_numbers(data: bytes) -> bool:
    """Or text that looks so. Else no number needs a look of its own, which for a megabyte takes long."""
    digits = data.translate(_DIGITS, delete=b"+")
    return b"0" * _MAX_NUMBER_CHARACTERS in digits or b"0e000" in digits


def _refuse_constant(_: str) -> NoReturn:
    raise _BadNumberError


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _BadNumberError
    return value


def _parse_int(text: str) -> int:
    if len(text) > _MAX_NUMBER_CHARACTERS:
        raise _BadNumberError
    return int(text)


def _refuse_surrogates(value: object) -> None:
    """Escapes can write half of a character, which no UTF-8 can carry on."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise _bad("the body has a lone surrogate: not valid Unicode") from error
    except RecursionError as error:
        raise _bad("the body is nested too deeply") from error


def _bad(message: str) -> ApiError:
    return ApiError(400, message, code="bad_json")
