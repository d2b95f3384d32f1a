"""A conversation as token ids, by the model's own chat template.

What users write stays text. Tokenisers look for control tokens first and only then at the text between them,
so: break every control token's name that occurs in the messages with a marker character, render, split the
result at the control tokens' names (these are the template's own), and read the rest, without the markers, as
plain text. For honest messages the ids are those of `transformers.apply_chat_template`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from serving.engine.bounds import check_fits
from serving.engine.errors import ModelMismatch, RequestError

RENDER_LIMIT_S = 5.0
START_LIMIT_S = 60.0
_PRIVATE_USE = re.compile("\\\\u[ef][0-9a-f]{3}|[\ue000-\uf8ff]")
"""As `repr` writes such characters, and raw."""
_LSTRIP, _RSTRIP = 1 << 7, 1 << 8  # llama_token_attr: the token takes the white space before or after it


class ChatVocabulary(Protocol):
    """What rendering has to know of a model."""

    path: str

    @property
    def control_tokens(self) -> Mapping[str, tuple[int, int]]: ...

    def tokenize(self, data: bytes, *, special: bool, add_bos: bool) -> list[int]: ...

    def named_tokens(self) -> dict[str, str]: ...


class ChatTemplate:
    """Thread-safe. The rendering process starts with the first conversation and ends with `close`."""

    def __init__(
        self, source: str, vocabulary: ChatVocabulary, *, render_limit_s: float = RENDER_LIMIT_S
    ) -> None:
        self.source = source
        self._vocabulary = vocabulary
        self._renderer = _Renderer(source, vocabulary.path, render_limit_s)
        self._supports_system: bool | None = None
        names = sorted(vocabulary.control_tokens, key=len, reverse=True)
        self._names = tuple(names)
        self._starts = frozenset(name[:length] for name in names for length in range(1, len(name)))
        self._longest_start = max(map(len, self._starts), default=0)
        self._splitter = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None

    def close(self) -> None:
        self._renderer.close()

    @property
    def supports_system(self) -> bool:
        """Whether a system message reaches the prompt."""
        if self._supports_system is None:
            messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
            try:
                self._supports_system = "Be brief." in self.render_text(messages)
            except RequestError:
                self._supports_system = False
        return self._supports_system

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        max_tokens: int | None = None,
        **variables: Any,
    ) -> tuple[int, ...]:
        """Token ids of the conversation; no BOS but the template's own.

        `variables` are passed to the template, such as `tools`. Raises RequestError `bad_messages` if the
        template refuses the messages, `invalid_text` for lone surrogates, `context_length_exceeded` if they
        are far over `max_tokens`; ModelMismatch if the template is at fault.
        """
        marker = _unused_character(self.source, messages, variables)
        guarded = self._guard(messages, marker), self._guard(variables, marker)
        text = self._render(guarded[0], add_generation_prompt, guarded[1])
        if max_tokens is not None:
            check_fits(_encode(text.replace(marker, "")), max_tokens, self._plain)
        tokens: list[int] = []
        strip_next = False
        for piece, control in self._split(text):
            if control is not None:
                tokens.append(control[0])
                strip_next = bool(control[1] & _RSTRIP)
            elif plain := (piece.lstrip() if strip_next else piece).replace(marker, ""):
                tokens += self._plain(_encode(plain))
        return tuple(tokens)

    def _plain(self, data: bytes) -> list[int]:
        return self._vocabulary.tokenize(data, special=False, add_bos=False)

    def render_text(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The conversation as text. For reading: as a prompt, control tokens in it would be ambiguous."""
        return self._render(messages, add_generation_prompt, variables)

    def _render(self, messages: Any, add_generation_prompt: bool, variables: Any) -> str:
        try:
            line = json.dumps(
                {
                    "messages": messages,
                    "tools": None,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                    **self._vocabulary.named_tokens(),
                    **variables,
                }
            )
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError("bad_messages", f"messages cannot be written as JSON: {error}") from error
        return self._renderer.render(line)

    def _split(self, text: str) -> Iterator[tuple[str, tuple[int, int] | None]]:
        """Alternately plain pieces and control tokens."""
        pieces = self._splitter.split(text) if self._splitter else [text]
        controls = self._vocabulary.control_tokens
        for index, piece in enumerate(pieces):
            if index % 2:
                yield piece, controls[piece]
            elif index + 1 < len(pieces) and controls[pieces[index + 1]][1] & _LSTRIP:
                yield piece.rstrip(), None
            else:
                yield piece, None

    def _guard(self, value: Any, marker: str) -> Any:
        """A copy in which no string contains a control token's name, or ends with the start of one."""
        if isinstance(value, str):
            return self._guard_text(value, marker)
        if isinstance(value, Mapping):
            return {self._guard(key, marker): self._guard(item, marker) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._guard(item, marker) for item in value]
        return value

    def _guard_text(self, text: str, marker: str) -> str:
        for name in self._names:
            if name in text:
                # After every character but the last: broken wherever the template may cut the text.
                text = text.replace(name, marker.join(name))
        body = text.rstrip()
        if any(
            body[-length:] in self._starts for length in range(1, min(len(body), self._longest_start) + 1)
        ):
            text = body + marker + text[len(body) :]
        return text


def _unused_character(*values: Any) -> str:
    """A private-use character that occurs nowhere in the values: it changes no test, trim or split of a
    template."""
    used = set(_PRIVATE_USE.findall(repr(values)))
    for code in range(0xE000, 0xF8FF):
        if f"\\u{code:04x}" not in used and chr(code) not in used:
            return chr(code)
    raise RequestError("bad_messages", "the messages use every private-use character")


def _encode(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            "invalid_text", "the messages contain a lone surrogate: not valid Unicode"
        ) from error


class _Renderer:
    """The rendering process: started when needed, ended when it takes too long."""

    def __init__(self, source: str, path: str, limit_s: float) -> None:
        self._source = source
        self._path = path
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def render(self, line: str) -> str:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            return self._exchange(line, self._limit_s)

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _start(self) -> None:
        self._stop()
        script = Path(__file__).with_name("chat_child.py")
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(script)],  # -P: this folder's modules are not the standard library's
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        self._exchange(json.dumps(self._source), START_LIMIT_S)

    def _exchange(self, line: str, limit_s: float) -> str:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        overdue = threading.Event()
        timer = threading.Timer(limit_s, _end, (process, overdue))
        timer.start()
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            timer.cancel()
        if not answer:
            self._stop()
            reason = f"took longer than {limit_s:g} s" if overdue.is_set() else "ended its process"
            raise ModelMismatch(f"{self._path}: its chat template {reason}")
        return self._read(json.loads(answer))

    def _read(self, reply: dict[str, str]) -> str:
        if "text" in reply:
            return reply["text"]
        if reply["fault"] == "template":
            raise ModelMismatch(f"{self._path}: its chat template fails: {reply['error']}")
        raise RequestError(
            "bad_messages", f"the model's chat template refuses the messages: {reply['error']}"
        )

    def _stop(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                _close_quietly(pipe.close)


def _end(process: subprocess.Popen[str], overdue: threading.Event) -> None:
    overdue.set()
    process.kill()


def _close_quietly(close: Callable[[], None]) -> None:
    try:
        close()
    except BrokenPipeError:  # unsent text for a process that has ended
        return
