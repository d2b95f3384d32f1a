"""`orpo doctor`: what it says follows from what it finds."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ray_jobs.cli import doctor, machine
from ray_jobs.cli import main as cli
from ray_jobs.cli.forecast import SIZES, outlook
from ray_jobs.cli.machine import EngineRate
from serving.engine.llamacpp import kernels
from serving.engine.topology import memory_bytes

RATE = EngineRate(prompt_tokens_per_s=1000.0, answer_tokens_per_s=400.0, num_weights=134.5e6)


def test_rates_scale_with_weights() -> None:
    small = outlook("SmolLM2-135M", 24e9, RATE, 1e12)
    large = outlook("Llama-3.2-1B", 24e9, RATE, 1e12)
    ratio = SIZES["SmolLM2-135M"] / SIZES["Llama-3.2-1B"]
    assert small.answer_tokens_per_s == 400.0
    assert large.answer_tokens_per_s == pytest.approx(400.0 * ratio)
    assert small.train_tokens_per_s is not None
    assert large.train_tokens_per_s == pytest.approx(small.train_tokens_per_s * ratio)
    # 1000 answers of 256 tokens to prompts of 256: 640 s of answers and 256 s of prompts
    assert small.minutes_per_1000_answers == pytest.approx((640 + 256) / 60)


def test_what_does_not_fit_into_memory_is_said() -> None:
    assert not outlook("Mistral-Small-2409", 8e9, None, None).serves
    assert outlook("Llama-3.1-8B", 8e9, None, None).serves
    assert not outlook("Llama-3.2-1B", 6e9, None, None, bytes_per_weight=4).trains
    assert outlook("Llama-3.2-1B", 6e9, None, None, bytes_per_weight=2).trains
    assert outlook("Llama-3.1-8B", 8e9, None, None, training_memory=80e9).trains


def test_gpu_memory_is_that_of_the_smallest() -> None:
    assert machine.gpu_memory_bytes(["NVIDIA L4, 23034 MiB", "NVIDIA T4, 15360 MiB"]) == 15360 * 2**20
    assert machine.gpu_memory_bytes([]) is None


def test_a_look_at_this_machine(tmp_path: Path) -> None:
    found = doctor.examine(tmp_path / "not" / "there", measured=False)
    subjects = {finding.subject for finding in found.findings}
    assert {"system", "processor", "memory", "disk", "compiler", "gpu", "packages", "ray", "hub"} <= subjects
    assert found.usable
    assert len(found.outlooks) == len(SIZES)
    assert all(row.answer_tokens_per_s is None for row in found.outlooks)


def test_a_missing_engine_is_bad_and_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = machine.version_of
    monkeypatch.setattr(
        machine, "version_of", lambda name: None if name == "llama-cpp-python" else installed(name)
    )
    done = CliRunner().invoke(cli.app, ["doctor", "--quick", "--json"])
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert not found["usable"]
    (bad,) = (finding for finding in found["findings"] if finding["level"] == "bad")
    assert bad["text"].startswith("missing: llama-cpp-python")


def test_a_slow_build_of_the_engine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "engine_rate", lambda: RATE)
    monkeypatch.setattr(kernels, "state", lambda: kernels.State(True))
    for slow, level in ((False, "ok"), (True, "note")):
        monkeypatch.setattr(
            "serving.engine.llamacpp.half_precision.sums_in_half_precision", lambda found=slow: found
        )
        (engine,) = (one for one in doctor.measure().findings if one.subject == "engine")
        assert engine.level == level
        assert ("-mno-avx512fp16" in engine.text) is slow
        assert "400 answer tokens/s and 1,000 prompt tokens/s" in engine.text


@pytest.mark.parametrize(
    ("state", "level", "told"),
    [
        (kernels.State(True, instruction_set="avx2"), "ok", "by our kernels for avx2"),
        (kernels.State(False, f"ours were not built: {kernels.COMMAND}"), "note", kernels.COMMAND),
        (kernels.State(False, "this processor has no avx2"), "ok", "llama.cpp's kernels: this processor"),
    ],
)
def test_whose_kernels_compute_is_said(
    state: kernels.State, level: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "engine_rate", lambda: RATE)
    monkeypatch.setattr("serving.engine.llamacpp.half_precision.sums_in_half_precision", lambda: False)
    monkeypatch.setattr(kernels, "state", lambda: state)
    (engine,) = (one for one in doctor.measure().findings if one.subject == "engine")
    assert engine.level == level
    assert told in engine.text


def test_tokens_are_said_to_be_there_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "ray_secret")
    done = CliRunner().invoke(cli.app, ["doctor", "--quick"])
    assert "hub        token present" in done.stdout
    assert "secret" not in done.stdout


def test_a_control_groups_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.engine.topology.cgroup_folders", lambda _: [tmp_path, tmp_path / "none"])
    assert memory_bytes()[1] is None
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_bytes()[1] is None
    (tmp_path / "memory.max").write_text("1000000\n")
    assert memory_bytes()[1] == 1000000
