"""Requests out of JSON: of what does not fit one line names the parameter, and quotes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from serving.http.errors import ApiError

RequestT = TypeVar("RequestT", bound=BaseModel)
TOO_MANY = "array_above_max_length"

UNSUPPORTED: Mapping[str, str] = {
    "functions": "functions are not supported",
    "function_call": "functions are not supported",
    "audio": "audio is not supported",
    "modalities": "only text is supported",
    "web_search_options": "web search is not supported",
    "reasoning_effort": "this model has no reasoning effort",
    "verbosity": "this model has no verbosity",
    "suffix": "a suffix is not supported",
    "grammar": "client grammars are not accepted: use response_format",
    "guided_regex": "client regexes are not accepted: use response_format",
    "guided_grammar": "client grammars are not accepted: use response_format",
    "chat_template": "client templates are not accepted",
    "chat_template_kwargs": "client template variables are not accepted",
}


def parse(
    kind: type[RequestT], body: dict[str, Any], *, unsupported: Mapping[str, str] = UNSUPPORTED
) -> RequestT:
    """The request. Raises ApiError 400 naming the parameter, and quoting nothing of its value.

    `unsupported`: what is said of parameters (by dotted name) that are known, and refused. They may be null:
    clients write so what they do not use.
    """
    asked = {name: value for name, value in body.items() if value is not None or name not in unsupported}
    try:
        return kind.model_validate(asked)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        first = _most_telling(found)
        raise _api_error(first["type"], first["loc"], first["msg"], unsupported) from error


def _most_telling(errors: Sequence[ErrorDetails]) -> ErrorDetails:
    """The first; of a field that may be of several kinds, what is wrong within the likeliest of them."""
    first = errors[0]
    kind, field = first["loc"][-1], first["loc"][:-1]
    if not (first["type"].endswith("_type") and isinstance(kind, str) and kind in _UNION_TAGS):
        return first
    same = [each for each in errors if each["loc"][: len(field)] == field]
    return next((each for each in same if not each["type"].endswith("_type")), first)


_CODES: Mapping[str, str] = {
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
    "string_too_long": "string_above_max_length",
    "too_long": TOO_MANY,
    "too_short": "empty_array",
    **{f"{kind}_type": "invalid_type" for kind in ("string", "int", "float", "bool", "list", "dict")},
    "model_type": "invalid_type",
}
"""OpenAI's codes of what pydantic finds; the rest is `invalid_value`."""
_BOUNDS: Mapping[str, str] = {
    "greater_than": "below_min_value",
    "greater_than_equal": "below_min_value",
    "less_than": "above_max_value",
    "less_than_equal": "above_max_value",
}
_DECIMALS = frozenset(
    {"temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "logit_bias"}
)

_UNION_TAGS = frozenset({"str", "int", "float", "bool", "NamedChoice"})
_BRANCH = "item:"
"""How the tags of our own unions begin; they are no part of a parameter's name."""


def _api_error(
    kind: str, location: tuple[int | str, ...], message: str, unsupported: Mapping[str, str]
) -> ApiError:
    names = [str(part)[:64] for part in location if not _is_branch(part)]
    if len(names) > 1 and names[-1] in _UNION_TAGS:  # which of a field's kinds the value is not
        names.pop()
    param = ".".join(names[:6]) or None
    refused = next((name for name in (param, *names[:1]) if name in unsupported), None)
    if refused is not None:
        message = f"{refused}: {unsupported[refused]}"
        return ApiError(400, message, param=param, code="unsupported_parameter")
    code = _CODES.get(kind, "invalid_value")
    if kind in _BOUNDS:
        code = f"{'decimal' if names[0] in _DECIMALS else 'integer'}_{_BOUNDS[kind]}"
    said = {
        "extra_forbidden": f"unknown parameter: {param}",
        "missing": f"missing parameter: {param}",
        "none_required": f"{param} is not supported",
    }
    return ApiError(400, said.get(kind, f"{param}: {message}"), param=param, code=code)


def _is_branch(part: int | str) -> bool:
    return isinstance(part, str) and ("[" in part or part.startswith(_BRANCH))
