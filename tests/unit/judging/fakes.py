"""A judge that says what it is told to."""

from collections.abc import Callable, Sequence

from ray_jobs.judging.backend import Call, Completion, OnDone
from ray_jobs.judging.expected import TokenChoice
from ray_jobs.judging.inputs import JudgeItem
from ray_jobs.records import Message, Prompt

Reply = Callable[[Call], Completion]


class FakeBackend:
    sha256 = "f" * 64
    fingerprint = ""
    tokenizes = True

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.rounds: list[list[Call]] = []

    def complete(self, calls: Sequence[Call], scores: Sequence[int], on_done: OnDone) -> list[Completion]:
        self.rounds.append(list(calls))
        done = [self.reply(call) for call in calls]
        for completion in reversed(done):
            on_done(completion)
        return done

    def num_prompt_tokens(self, prompt: str) -> int | None:
        return len(prompt.split())


def says(text: str) -> Reply:
    return lambda call: Completion(call.id, text, "stop", 0.5)


def verdict(score: int | str, feedback: str = "Because.") -> str:
    return f"<feedback>\n{feedback}\n</feedback>\n<score>\n{score}\n</score>"


def scored(call: Call, score: int, logprobs: dict[str, float]) -> Completion:
    """A verdict with the probabilities at its score position."""
    pieces = ["<feedback>\nBecause.\n</feedback>\n<score>\n", str(score), "\n</", "score", ">"]
    tokens = [
        TokenChoice(piece, logprobs if index == 1 else {piece: 0.0}) for index, piece in enumerate(pieces)
    ]
    return Completion(call.id, "".join(pieces), "stop", 0.5, tuple(tokens))


def prompt(row: str = "p", question: str = "Why?", reference: str | None = "Because.") -> Prompt:
    return Prompt(row, "tests", (Message("user", question),), reference)


def item(row: str = "a", answer: str = "Because.", question: str = "Why?") -> JudgeItem:
    return JudgeItem(row, prompt(row, question), answer)
