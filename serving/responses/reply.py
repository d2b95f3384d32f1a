"""Replies of the Responses API, out of events: whole, and as the events of a stream.

Both are made in one way: a whole reply is what the last event of a stream holds.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from serving.calls import Called, ChosenToken, Ended, Event, Text
from serving.http.errors import ApiError
from serving.replies import Answer, fingerprint, logprobs_of
from serving.responses.protocol import ResponsesRequest
from serving.tools import ToolCall

_PARAMS = {"messages": "input", "prompt": "input", "response_format": "text.format"}
_ERROR_CODES = {429: "rate_limit_exceeded"}


@dataclass(kw_only=True)
class ResponseReply(Answer):
    """What is known of a response so far, and how each part of it is written."""

    asked: ResponsesRequest
    end: ClassVar[bytes] = b""
    _num_events: int = 0
    _text: str = ""
    _tokens: list[dict[str, Any]] = field(default_factory=list)
    _output: list[dict[str, Any]] = field(default_factory=list)
    """Items that are complete."""
    _is_message_open: bool = False

    def param(self, name: str | None) -> str | None:
        """The request's word for a parameter of the call."""
        return _PARAMS.get(name or "", name)

    def whole(self, events: Iterable[Event]) -> dict[str, Any]:
        """The reply to a request that did not stream."""
        parts = [part for event in events for part in self.parts(event)]
        response: dict[str, Any] = parts[-1]["response"]
        return response

    def opening(self) -> list[dict[str, Any]]:
        response = self._response("in_progress")
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
        ]

    def parts(self, event: Event) -> list[dict[str, Any]]:
        """The stream's events for one of the engine side's."""
        if isinstance(event, Text):
            return self._more_text(event)
        if isinstance(event, Called):
            parts = self._close_message("completed")
            return parts + [part for call in event.calls for part in self._call(call)]
        if isinstance(event, Ended):
            return self._ending(event)
        return []

    def closing(self) -> list[dict[str, Any]]:
        return []

    def broken(self, error: ApiError) -> list[dict[str, Any]]:
        """The end of a stream that cannot be ended: what was said so far stands in it."""
        self._close_message("incomplete")
        code = _ERROR_CODES.get(error.status, "server_error")
        response = {
            **self._response("failed"),
            "error": {"code": code, "message": error.body["error"]["message"]},
        }
        return [self._event("response.failed", response=response)]

    # Items.

    def _more_text(self, text: Text) -> list[dict[str, Any]]:
        parts = [] if self._is_message_open else self._open_message()
        tokens = _logprobs(text.tokens)
        self._text += text.text
        self._tokens += tokens
        return [
            *parts,
            self._of_content("response.output_text.delta", delta=text.text, logprobs=tokens),
        ]

    def _open_message(self) -> list[dict[str, Any]]:
        self._is_message_open = True
        item = {**self._message("in_progress"), "content": []}
        return [
            self._event("response.output_item.added", output_index=len(self._output), item=item),
            self._of_content("response.content_part.added", part=self._content()),
        ]

    def _close_message(self, status: str) -> list[dict[str, Any]]:
        if not self._is_message_open:
            return []
        self._is_message_open = False
        item = self._message(status)
        parts = [
            self._of_content("response.output_text.done", text=self._text, logprobs=self._tokens),
            self._of_content("response.content_part.done", part=self._content()),
            self._event("response.output_item.done", output_index=len(self._output), item=item),
        ]
        self._output.append(item)
        return parts

    def _call(self, call: ToolCall) -> list[dict[str, Any]]:
        index = len(self._output)
        item = {
            "id": self._item_id("fc"),
            "type": "function_call",
            "status": "completed",
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
        }
        self._output.append(item)
        where = {"item_id": item["id"], "output_index": index}
        begun = {**item, "status": "in_progress", "arguments": ""}
        return [
            self._event("response.output_item.added", output_index=index, item=begun),
            self._event("response.function_call_arguments.delta", **where, delta=call.arguments),
            self._event(
                "response.function_call_arguments.done", **where, name=call.name, arguments=call.arguments
            ),
            self._event("response.output_item.done", output_index=index, item=item),
        ]

    def _ending(self, ended: Ended) -> list[dict[str, Any]]:
        """An answer of nothing at all is an empty message."""
        status = "incomplete" if ended.finish_reason == "length" else "completed"
        parts = [] if self._is_message_open or self._output else self._open_message()
        parts += self._close_message(status)
        response = {**self._response(status), "completed_at": int(time.time()), "usage": self._usage()}
        if status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        return [*parts, self._event(f"response.{status}", response=response)]

    # Forms.

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._num_events += 1
        return {"type": kind, "sequence_number": self._num_events - 1, **fields}

    def _of_content(self, kind: str, **fields: Any) -> dict[str, Any]:
        """An event about the message's one part."""
        where = {"item_id": self._item_id("msg"), "output_index": len(self._output), "content_index": 0}
        return self._event(kind, **where, **fields)

    def _item_id(self, kind: str) -> str:
        return f"{kind}_{self.call.id.removeprefix('resp_')}{len(self._output)}"

    def _message(self, status: str) -> dict[str, Any]:
        return {
            "id": self._item_id("msg"),
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [self._content()],
        }

    def _content(self) -> dict[str, Any]:
        return {
            "type": "output_text",
            "text": self._text,
            "annotations": [],
            "logprobs": list(self._tokens),
        }

    def _usage(self) -> dict[str, Any]:
        return {
            "input_tokens": self.num_prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": self.num_cached_tokens,
                "cache_write_tokens": self.num_prompt_tokens - self.num_cached_tokens,
            },
            "output_tokens": self.num_answer_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.num_prompt_tokens + self.num_answer_tokens,
        }

    def _response(self, status: str) -> dict[str, Any]:
        """The response object, with the settings that it was written with."""
        asked, sampling = self.asked, self.call.sampling
        said = asked.model_dump(
            mode="json",
            by_alias=True,
            exclude_none=True,
            include={"text", "tool_choice", "metadata", "user", "prompt_cache_key", "safety_identifier"},
        )
        return {
            "id": self.call.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "model": self.model,
            "output": list(self._output),
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": sampling.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [
                {
                    "type": "function",
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.parameters,
                    "strict": tool.strict,
                }
                for tool in asked.tools or ()
            ],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            "metadata": {},
            **said,
            "system_fingerprint": fingerprint(self.sha256),
        }


def _logprobs(tokens: tuple[ChosenToken, ...] | None) -> list[dict[str, Any]]:
    return [] if tokens is None else logprobs_of(tokens)
