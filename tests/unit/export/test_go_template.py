"""Chat templates in ollama's language: exactly the original's text, or none."""

from pathlib import Path
from typing import Any

import gguf
import jinja2
import pytest

from ray_jobs.export.gguf_file import GgufFile
from ray_jobs.export.go_template import TurnTexts, derive
from ray_jobs.export.modelfile import CHECKED, adds_bos

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "<s>{% for m in messages %}<|h|>{{ m['role'] }}<|/h|>\n\n{{ m['content'] }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant<|/h|>\n\n{% endif %}"
)
NUMBERED = "{% for m in messages %}{{ loop.index }} {{ m['content'] }}\n{% endfor %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + LLAMA


def renderer(template: str) -> Any:
    def refuse(message: str) -> None:
        raise ValueError(message)

    compiled = jinja2.Environment().from_string(template, globals={"raise_exception": refuse})
    return lambda chat, answer: compiled.render(messages=chat, add_generation_prompt=answer)


def test_a_template_with_a_default_system_turn() -> None:
    texts = derive(renderer(CHATML), "", CHECKED)
    assert texts == TurnTexts(
        default_system="<|im_start|>system\nYou help.<|im_end|>\n",
        system=("<|im_start|>system\n", "<|im_end|>\n"),
        user=("<|im_start|>user\n", "<|im_end|>\n"),
        assistant=("<|im_start|>assistant\n", "<|im_end|>\n"),
        answer_start="<|im_start|>assistant\n",
    )
    assert texts.go() == (
        '{{- if ne (index .Messages 0).Role "system" }}'
        "<|im_start|>system\nYou help.<|im_end|>\n{{ end }}"
        '{{- range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n'
        "{{ end }}{{ end }}"
        "<|im_start|>assistant\n"
    )


def test_the_token_that_llama_cpp_adds_is_left_out() -> None:
    texts = derive(renderer(LLAMA), "<s>", CHECKED)
    assert texts is not None
    assert texts.default_system == ""
    assert texts.render([{"role": "user", "content": "Hi"}]) == (
        "<|h|>user<|/h|>\n\nHi<|eot|><|h|>assistant<|/h|>\n\n"
    )


@pytest.mark.parametrize(
    "template",
    [NUMBERED, NO_SYSTEM, "hello", LLAMA.replace("<|eot|>", "{{ '{{' }}"), LLAMA + "{{ messages|length }}"],
)
def test_what_cannot_be_said_is_not(template: str) -> None:
    assert derive(renderer(template), "<s>", CHECKED) is None


@pytest.mark.parametrize(
    ("model", "pre", "said", "adds"),
    [
        ("gpt2", "smollm", False, False),
        ("gpt2", "smollm", True, True),
        ("gpt2", "llama-bpe", False, False),
        ("gpt2", "llama-bpe", None, True),
        ("gpt2", "qwen2", None, False),
        ("llama", "default", None, True),
        ("llama", "default", False, False),
    ],
)
def test_whether_llama_cpp_begins_with_a_token(
    tmp_path: Path, model: str, pre: str, said: bool | None, adds: bool
) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    if said is not None:
        writer.add_add_bos_token(said)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert adds_bos(GgufFile(tmp_path / "m.gguf")) is adds
