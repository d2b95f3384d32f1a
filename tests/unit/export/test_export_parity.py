"""The rule by which llama.cpp's tokens count as the model's."""

import numpy as np
import pytest

from ray_jobs.export.errors import ExportError, ModelMismatch
from ray_jobs.export.logits import Probe, Reading
from ray_jobs.export.parity import compare

PROBE = Probe("text", (5, 6), (1, 2))
LIMIT = 0.02


def logits(seed: int = 0) -> np.ndarray:
    rows_TV = np.random.default_rng(seed).normal(size=(2, 4000)).astype(np.float32)
    rows_TV[0, 1] = rows_TV[1, 2] = 6.0
    return rows_TV


def noise(size: float) -> np.ndarray:
    return np.random.default_rng(9).normal(scale=size, size=(2, 4000)).astype(np.float32)


def test_equal_logits() -> None:
    parity = compare(PROBE, logits(), logits(), Reading((5, 6), logits()), LIMIT)
    assert (parity.tokens, parity.identical, parity.near_ties) == (2, 2, 0)
    assert parity.max_relative_logit_error == parity.max_relative_compute_error == 0.0


def test_a_padded_vocabulary_is_cut() -> None:
    padded = np.pad(logits(), ((0, 0), (0, 96)))
    assert compare(PROBE, logits(), logits(), Reading((5, 6), padded), LIMIT).identical == 2


def test_other_tokens_for_the_prompt_are_another_tokenizer() -> None:
    with pytest.raises(ModelMismatch, match="tokenizer is not the base's"):
        compare(PROBE, logits(), logits(), Reading((5, 7), logits()), LIMIT)


def test_a_tie_within_rounding_is_counted() -> None:
    expected, found = logits(), logits() + noise(0.01)
    expected[0, 7] = 5.99
    found[0, 7] = 6.03
    parity = compare(PROBE, expected, found, Reading((5, 6), found), LIMIT)
    assert (parity.identical, parity.near_ties) == (1, 1)
    assert 0.01 < parity.max_relative_logit_error < 0.1


def test_another_token_beyond_rounding_is_an_error() -> None:
    expected, found = logits(), logits() + noise(0.01)
    expected[0, 7] = 5.5
    found[0, 7] = 6.5
    with pytest.raises(ExportError, match=r"chooses token 7, the model 1, 0\.5 above it"):
        compare(PROBE, expected, found, Reading((5, 6), found), LIMIT)


@pytest.mark.parametrize("bad", [0.5, np.nan])
def test_a_logit_that_is_off_is_an_error_though_tokens_agree(bad: float) -> None:
    found = logits()
    found[1, 100] += bad
    with pytest.raises(ExportError, match="does not compute what the model does"):
        compare(PROBE, logits(), logits(), Reading((5, 6), found), LIMIT)
