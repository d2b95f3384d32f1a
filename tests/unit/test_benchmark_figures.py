"""The figures that others read out of the benchmarks' JSON keep their names and their meaning."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import generation, judging, part_load, verdict


def rates(**tokens_per_s: float) -> dict[str, list[dict[str, float]]]:
    """One round of a second each."""
    return {name: [{"tokens": rate, "seconds": 1.0}] for name, rate in tokens_per_s.items()}


def test_generation() -> None:
    rounds = rates(
        loop_q4_0=100,
        pinned_pair_q4_0=200,
        llama_server_q4_0=250,
        engine_q4_0=500,
        loop_q4_1=50,
        engine_q4_0_llama_cpp_kernels=400,
        bare_openvino_q4_0=1000,
        engine_openvino_q4_0=950,
    )
    rounds["engine_q4_0"][0] |= {"compute_s": 0.98, "busy_s": 1.0}
    found = generation.figures(rounds)
    expected = {
        "speedup_vs_loop": 5.0,
        "speedup_vs_pinned_pair": 2.5,
        "speedup_vs_llama_server": 2.0,
        "speedup_recipe_vs_bundled_loop": 10.0,
        "kernels_vs_llama_cpp_kernels": 1.25,
        "share_of_decode_limit": 0.98,
        "openvino_vs_bare": 0.95,
        "openvino_vs_llama_cpp": 1.9,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_judging() -> None:
    def one(seconds: float, scores: list[int]) -> list[dict[str, object]]:
        return [
            {"judgements": 4, "seconds": seconds, "scores": scores, "cached_tokens": 1, "prompt_tokens": 2}
        ]

    found = judging.figures(
        {
            "sequential": one(4.0, [1, 2, 3, 4]),
            "engine": one(1.0, [1, 2, 3, 5]),
            "engine_openvino": one(0.5, [1, 2, 3, 4]),
        }
    )
    expected = {
        "speedup_vs_sequential": 4.0,
        "speedup_vs_sequential_openvino": 8.0,
        "same_scores_engine": 0.75,
        "same_scores_engine_openvino": 1.0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_judgements_of_a_run_are_read_beside_its_other_files(tmp_path: Path) -> None:
    scores = {"base": [1.5, None, 3.0], "candidate": [2.0, 4.0, 5.0]}
    for model, values in scores.items():
        rows = [
            {"id": f"row-{n}", "metric": "M", "score": value and round(value), "expected_score": value}
            for n, value in enumerate(values)
        ]
        answers = [{"id": row["id"], "answer": "x" * (n + 1)} for n, row in enumerate(rows)]
        for part, table in (("judgements", rows), ("answers", answers)):
            folder = tmp_path / part / model
            folder.mkdir(parents=True)
            pq.write_table(pa.Table.from_pylist(table), folder / "part-00000.parquet")
            (folder / "spent.json").write_text("{}")
    found, lengths = verdict.real_pool([tmp_path / "judgements" / model for model in scores], None)
    assert found.tolist() == [[1.5, 3.0], [2.0, 5.0]]
    assert lengths.tolist() == [[1.0, 3.0], [1.0, 3.0]]


def test_scale_report_comes_to_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import scale_report
    from ray_jobs.stages import cluster, judge

    for module, name in ((judge, "compute_tables"), (cluster, "connect")):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back after the test
    for step in scale_report.STEPS:
        scale_report.one(step, 60, str(tmp_path))
    assert len(capsys.readouterr().out.splitlines()) == 3
    report = json.loads((tmp_path / "smoke/report/report.json").read_bytes())
    assert (report["num_prompts"], report["judge_trust"]["pairs"]) == (60, 8)


def test_part_load() -> None:
    def rounds(*rates: float) -> list[dict[str, object]]:
        return [
            {load.name: {"tokens_per_s": rate, "hit_rate": 0.5} for load in part_load.LOADS} for rate in rates
        ]

    found = part_load.figures(
        {
            part_load.SIDE_BY_SIDE: rounds(10, 20, 60),
            part_load.APART: rounds(5, 5, 20),
            part_load.NO_IDLE: rounds(10, 40, 60),
        }
    )
    expected = {
        "tokens_per_s_4_clients_side_by_side": 20,
        "speedup_4_clients_vs_apart": 3,
        "speedup_5_chats_vs_slots_as_clients": 1,
        "hit_rate_16_clients_apart": 0.5,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
