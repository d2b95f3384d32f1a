"""A real model with our kernels: it says what it says with llama.cpp's, and each answer is its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving.engine import Engine, EngineSettings, Request, Sampling
from serving.engine.llamacpp import kernels, library
from serving.engine.llamacpp.quality import greedy_agreement, next_token_logits, perplexity
from serving.engine.llamacpp.quantize import quantize

TEXT = " ".join(
    f"The {ordinal} river runs for {length} miles from the hills to the sea, past {towns} towns; boats need "
    f"{days} days for it, and in a dry summer twice as many."
    for ordinal, length, towns, days in [
        ("first", 120, "seven", 3), ("second", 95, "four", 2), ("third", 310, "nineteen", 8),
        ("fourth", 47, "two", 1), ("fifth", 800, "fifty", 21), ("sixth", 260, "eleven", 6),
        ("seventh", 150, "nine", 4), ("eighth", 530, "thirty", 13), ("ninth", 75, "three", 2),
    ]
)  # fmt: skip
QUESTIONS = [
    f"What is {first} times {second}? Say why." for first in (3, 7, 12) for second in (4, 11, 250, 9)
]


@pytest.fixture(scope="module")
def model(model_path: Path) -> Path:
    library.start()
    if not kernels.state().in_use:
        pytest.skip(kernels.state().reason)
    return model_path


def test_the_model_is_the_same(model: Path) -> None:
    """No further from llama.cpp's than llama.cpp's own ways to compute it, a token or a tile at a time, are
    from each other: activations are rounded to 8 bits, which any difference in the last digit tips over."""
    tokens, found = next_token_logits(str(model), TEXT)
    with kernels.switched_off():
        same_tokens, original = next_token_logits(str(model), TEXT)
        _, by_single_tokens = next_token_logits(str(model), TEXT, num_at_once=32)
    assert tokens == same_tokens
    assert len(tokens) > 300
    noise = (by_single_tokens - original).std()
    assert 0 < noise < 0.06 * original.std()
    assert 0 < (found - original).std() < 1.3 * noise
    assert perplexity(tokens, found) == pytest.approx(perplexity(tokens, original), rel=0.02)
    assert greedy_agreement(found, original) > 0.9


@pytest.mark.parametrize("num_at_once", [1, 2, 3, 7, 37])
@pytest.mark.parametrize("quantisation", ["q4_0", "q4_k_m"])
def test_chunks_of_a_prompt_do_not_matter(
    model: Path, bundled_model: Path, tmp_path: Path, quantisation: str, num_at_once: int
) -> None:
    """However many rows are left after those that llama.cpp multiplies in fours."""
    if quantisation == "q4_k_m":
        model = quantize(bundled_model, tmp_path / "q4_k_m.gguf", "q4_k_m")
    text = TEXT[: 100 * num_at_once + 200]
    _, whole = next_token_logits(str(model), text)
    _, pieces = next_token_logits(str(model), text, num_at_once=num_at_once)
    assert whole.tobytes() == pieces.tobytes()


def answers(model: Path, questions: list[str], **settings: Any) -> dict[str, tuple[str, tuple[float, ...]]]:
    with Engine.open(
        model, EngineSettings(pin=False, context_tokens=512, deterministic=False, **settings)
    ) as engine:
        requests = [
            Request(
                question,
                engine.chat.render([{"role": "user", "content": question}]),
                Sampling(max_tokens=40, temperature=0.7, seed=5, top_logprobs=0),
            )
            for question in questions
        ]
        return {
            result.id: (result.text, tuple(each.logprob for each in result.logprobs or ()))
            for result in engine.generate(requests)
        }


def test_an_answer_does_not_depend_on_what_is_beside_it(model: Path) -> None:
    """Not one bit of its probabilities, even where batches are as they come."""
    together = answers(model, QUESTIONS, slots=12, lanes=1, cores=1)
    assert together == answers(model, QUESTIONS[::-1], slots=5, lanes=1, cores=1)
    assert together == answers(model, QUESTIONS, slots=12, lanes=1, cores=2)
    alone = {question: answers(model, [question], slots=1, lanes=1)[question] for question in QUESTIONS[:3]}
    assert alone == {question: together[question] for question in alone}


def test_what_prompts_have_in_common_is_read_once_and_changes_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sequences that come and go, with beginnings in common that split further on, in slots used many times:
    not one bit of their probabilities differs from what each is when it shares nothing."""
    words = TEXT.split()
    first, second = " ".join(words[:120]), " ".join(words[:60] + words[120:180])
    questions = [f"{(first, second)[index % 2]}\n{question}" for index, question in enumerate(QUESTIONS * 2)]
    told: list[int] = []

    def share(numbers: Any, tile_tokens: int) -> None:
        told.append(0 if numbers is None else int((numbers > 0).sum()))
        told_kernels(numbers, tile_tokens)

    told_kernels = kernels.share
    monkeypatch.setattr(kernels, "share", share)
    shared = answers(model, questions, slots=5, lanes=1, cores=1)
    assert len([tiles for tiles in told if tiles >= 4]) > 40
    assert shared == answers(model, questions, slots=5, lanes=1, cores=1, prefix_cache=False)
    told.clear()
    assert shared == answers(model, questions, slots=12, lanes=1, cores=1)
    assert max(told) >= 12
