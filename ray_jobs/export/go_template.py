"""A model's chat template in the language of ollama's Modelfile, derived and checked.

The Jinja template is rendered with marks in place of contents; what stands around the marks is the template's
own text. The result is only used if it renders a set of chats exactly as the original does.
Source of the target language: https://docs.ollama.com/modelfile and Go's text/template.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Chat = Sequence[dict[str, str]]
Render = Callable[[Chat, bool], str]
"""Chat, and whether the beginning of the answer is wanted -> text."""

S, U, A, V = "⟦S⟧", "⟦U⟧", "⟦A⟧", "⟦V⟧"


@dataclass(frozen=True)
class TurnTexts:
    """What a template puts around the turns of a chat."""

    default_system: str
    """Before a chat that has no system turn of its own."""
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer_start: str

    def render(self, chat: Chat) -> str:
        """What the Go template gives for a chat that waits for an answer."""
        around = {"system": self.system, "user": self.user, "assistant": self.assistant}
        start = "" if chat and chat[0]["role"] == "system" else self.default_system
        turns = (f"{around[t['role']][0]}{t['content']}{around[t['role']][1]}" for t in chat)
        return start + "".join(turns) + self.answer_start

    def go(self) -> str:
        """The template for a Modelfile."""
        first = '{{- if ne (index .Messages 0).Role "system" }}' + self.default_system + "{{ end }}"
        turns = "".join(
            f'{{{{ {"if" if role == "system" else "else if"} eq .Role "{role}" }}}}'
            f"{before}{{{{ .Content }}}}{after}"
            for role, (before, after) in (
                ("system", self.system),
                ("user", self.user),
                ("assistant", self.assistant),
            )
        )
        beginning = first if self.default_system else ""
        return f"{beginning}{{{{- range .Messages }}}}{turns}{{{{ end }}}}{{{{ end }}}}{self.answer_start}"


def derive(render: Render, bos: str, chats: Sequence[Chat]) -> TurnTexts | None:
    """The texts around turns, or None where no such texts render the chats as the template does.

    `bos` is what llama.cpp puts at the beginning itself, and is left out there; nothing where it does not.
    """
    try:
        texts = _around(lambda chat, answer: render(chat, answer).removeprefix(bos))
    except ValueError:
        return None
    parts = (texts.default_system, *texts.system, *texts.user, *texts.assistant, texts.answer_start)
    if any(mark in part for part in parts for mark in ("{{", "}}", '"""', S, U, A, V)):
        return None
    wanted = (render(chat, True).removeprefix(bos) for chat in chats)
    fits = all(texts.render(chat) == text for chat, text in zip(chats, wanted, strict=True))
    return texts if fits else None


def _around(render: Render) -> TurnTexts:
    """Raises ValueError where a mark does not appear exactly once."""
    user, answer = {"role": "user", "content": U}, {"role": "assistant", "content": A}
    other, system = {"role": "user", "content": V}, {"role": "system", "content": S}
    before_user, user_end = _split(render([user], False), U)
    _, end_with_start = _split(render([user], True), U)
    if not end_with_start.startswith(user_end):
        raise ValueError("the answer does not begin after the user's turn")
    talk = render([user, answer, other], False)
    to_answer, to_other = _split(_split(talk, U)[1], A)
    to_other, _ = _split(to_other, V)
    with_system = render([system, user], False)
    system_start, rest = _split(with_system, S)
    system_end, _ = _split(rest, U)
    user_start = _after(to_other, _split(render([user, answer], False), A)[1])
    return TurnTexts(
        default_system=_before(before_user, user_start),
        system=(system_start, _before(system_end, user_start)),
        user=(user_start, user_end),
        assistant=(_after(to_answer, user_end), _before(to_other, user_start)),
        answer_start=_after(end_with_start, user_end),
    )


def _split(text: str, mark: str) -> tuple[str, str]:
    if text.count(mark) != 1:
        raise ValueError(f"{mark} stands {text.count(mark)} times")
    before, _, after = text.partition(mark)
    return before, after


def _after(text: str, start: str) -> str:
    if not text.startswith(start):
        raise ValueError(f"does not start with {start!r}")
    return text[len(start) :]


def _before(text: str, end: str) -> str:
    if not text.endswith(end):
        raise ValueError(f"does not end with {end!r}")
    return text[: len(text) - len(end)]
