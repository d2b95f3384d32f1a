from __future__ import annotations

import pytest

from serving.engine import RequestError
from serving.engine.bounds import check_fits


class Words:
    """A tokenizer of two bytes a token that remembers how much it was given."""

    def __init__(self) -> None:
        self.longest = self.total = 0

    def __call__(self, data: bytes) -> list[int]:
        data.decode()  # whole characters
        self.longest = max(self.longest, len(data))
        self.total += len(data)
        return [0] * (len(data) // 2)


@pytest.mark.parametrize("text", ["a" * 1_000_000, "é" * 500_000, "🦜" * 250_000])
def test_long_text_is_refused_after_little_of_it(text: str) -> None:
    words = Words()
    with pytest.raises(RequestError) as refused:
        check_fits(text.encode(), 2048, words)
    assert refused.value.code == "context_length_exceeded"
    assert words.longest < 8200, "merging a long word takes time quadratic in its length"
    assert words.total < 16_400


def test_text_that_may_fit_passes() -> None:
    words = Words()
    check_fits(b"a" * 4096, 2048, words)
    assert words.total == 0, "short text is not tokenised twice"
    check_fits(b"a" * 20_000, 10_000, words)
