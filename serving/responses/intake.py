"""From a request of the Responses API to a call."""

from __future__ import annotations

from typing import Any

from serving.calls import Call
from serving.http.errors import ApiError
from serving.intake import capped, format_schema, refuse_both, sampling_of
from serving.parsing import UNSUPPORTED, parse
from serving.protocol import Tool, ToolFunction
from serving.responses.protocol import (
    AllowedTools,
    Content,
    FunctionCallItem,
    FunctionChoice,
    FunctionOutputItem,
    FunctionTool,
    Item,
    MessageItem,
    ResponsesRequest,
)
from serving.settings import RequestLimits
from serving.tool_intake import Choice, arguments_of, forced_schema, tools_of

_STATELESS = "nothing is stored here: send the whole conversation as input"
_REFUSED = {
    **{name: why for name, why in UNSUPPORTED.items() if name != "suffix"},
    "previous_response_id": _STATELESS,
    "conversation": _STATELESS,
    "background": "an answer is written while its client waits",
    "prompt": "there are no stored prompts: use input and instructions",
    "reasoning.effort": "this model has no reasoning effort",
    "text.verbosity": "this model has no verbosity",
    "n": "a response is one answer",
    "max_tokens": "use max_output_tokens",
    "max_completion_tokens": "use max_output_tokens",
    "response_format": "use text.format",
    "messages": "use input",
    "context_management": "conversations are not compacted here",
    "moderation": "there is no moderation",
}
_LOGPROBS = "message.output_text.logprobs"


def read_request(body: dict[str, Any]) -> ResponsesRequest:
    """The request. Raises ApiError 400."""
    return parse(ResponsesRequest, body, unsupported=_REFUSED)


def response_call(
    request: ResponsesRequest, limits: RequestLimits, *, call_id: str, deadline_s: float
) -> Call:
    """Of lengths that were checked. Raises ApiError 400 for more than the limits allow."""
    choice = _choice(request)
    tools = tools_of([_as_tool(tool) for tool in request.tools or ()], choice, limits)
    call_schema = forced_schema(tools, choice, limits)
    wanted = request.text.format if request.text else None
    answer_schema = (
        format_schema(wanted.type, wanted.schema_, limits, "text.format.schema") if wanted else None
    )
    refuse_both(tools, answer_schema, "text.format")
    return Call(
        id=call_id,
        model=request.model,
        sampling=sampling_of(
            request,
            limits,
            top_logprobs=_top_logprobs(request),
            json_schema=call_schema or answer_schema,
        ),
        max_tokens=capped(request.max_output_tokens, "max_output_tokens", limits),
        messages=_turns(request, limits),
        tools=tools,
        must_call=call_schema is not None,
        max_tool_calls=1 if request.parallel_tool_calls is False else None,
        stream=bool(request.stream),
        user=request.user or "",
        deadline_s=deadline_s,
    )


def _top_logprobs(request: ResponsesRequest) -> int | None:
    """The tokens' own probabilities are asked for by `include`; asking for others' includes them."""
    if request.top_logprobs or _LOGPROBS in (request.include or ()):
        return request.top_logprobs or 0
    return None


# Tools.


def _choice(request: ResponsesRequest) -> Choice:
    wanted = request.tool_choice
    if isinstance(wanted, FunctionChoice):
        return Choice("required", frozenset({wanted.name}))
    if isinstance(wanted, AllowedTools):
        return Choice(wanted.mode, frozenset(tool.name for tool in wanted.tools))
    return Choice(wanted or "auto")


def _as_tool(tool: FunctionTool) -> Tool:
    """As chat has it, and the templates."""
    function = ToolFunction(
        name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
    )
    return Tool(type="function", function=function)


# The conversation.


def _turns(request: ResponsesRequest, limits: RequestLimits) -> tuple[dict[str, Any], ...]:
    """The items as the turns that chat templates take, the instructions first."""
    items = request.input
    if isinstance(items, str):
        items = [MessageItem(role="user", content=items)]
    turns: list[dict[str, Any]] = []
    if request.instructions:
        turns.append({"role": "system", "content": request.instructions})
    for index, item in enumerate(items):
        _add(turns, item, limits, f"input.{index}")
    if not turns:
        raise ApiError(400, "input has nothing to answer", param="input", code="invalid_value")
    return tuple(turns)


def _add(turns: list[dict[str, Any]], item: Item, limits: RequestLimits, param: str) -> None:
    """A model's message and the calls after it are one turn, as are instructions and a system message next
    to them: many templates know a single system turn, the first."""
    if isinstance(item, MessageItem):
        role = "system" if item.role == "developer" else item.role
        if role == "system" and [turn["role"] for turn in turns] == ["system"]:
            turns[0]["content"] += f"\n\n{_text(item.content)}"
        else:
            turns.append({"role": role, "content": _text(item.content)})
    elif isinstance(item, FunctionCallItem):
        if not turns or turns[-1]["role"] != "assistant":
            turns.append({"role": "assistant", "content": ""})
        function = {
            "name": item.name,
            "arguments": arguments_of(item.arguments, limits, f"{param}.arguments"),
        }
        call = {"id": item.call_id, "type": "function", "function": function}
        turns[-1].setdefault("tool_calls", []).append(call)
    elif isinstance(item, FunctionOutputItem):
        turns.append({"role": "tool", "content": _text(item.output), "tool_call_id": item.call_id})


def _text(content: Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
