"""What the judge and verdict stages take up, without a cluster: fake judgements, real files."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.config import Config, load_config
from ray_jobs.errors import ConfigError, RunConflict
from ray_jobs.records import Answer, Judgement, Message, Pair, Prompt, as_row, text_sha256
from ray_jobs.runs import RunFolder, open_run
from ray_jobs.stages import cluster, export, generate, judge, judge_actor, promote, verdict
from ray_jobs.stages.base import config_inputs, refuse_changed
from ray_jobs.tables import PAIR_COLUMNS, PROMPT_COLUMNS, read_rows, write_rows

CONFIGS = Path(__file__).parents[2] / "configs"
METRIC = "RESPONSE_CORRECTNESS_5POINT"
NUM_PROMPTS = 60


def config_with(tmp_path: Path, *changes: str) -> Config:
    fixed = (f"storage={tmp_path}", "verdict.num_resamples=500", "verdict.when_untrusted=inconclusive")
    return load_config(CONFIGS / "smoke.yaml", [*fixed, *changes])


def run_with(config: Config, *models: str) -> RunFolder:
    """A run that is ready to be judged: NUM_PROMPTS prompts, 40 known pairs, an answer of each model."""
    folder = open_run(config.storage, config.name)
    prompts = [
        Prompt(f"p{n:02d}", "s", (Message("user", f"question {n}"),), f"{n}") for n in range(NUM_PROMPTS)
    ]
    pairs = [Pair(f"k{n}", "s", (Message("user", f"pair {n}"),), "right", "wrong") for n in range(40)]
    write_rows(folder.path("data/prompts.parquet"), [as_row(row) for row in prompts], PROMPT_COLUMNS)
    write_rows(folder.path("data/trust.parquet"), [as_row(row) for row in pairs], PAIR_COLUMNS)
    folder.write_json("data/report.json", {})
    for model in models:
        folder.write(f"models/{model}/model.gguf", model.encode())
        folder.write_json(f"models/{model}/manifest.json", {"sha256": model})
        rows = [
            as_row(Answer(row.id, "s", row.sha256, model, f"{model:>12} to {row.id}", 1, 0, 3, "stop", 0.1))
            for row in prompts
        ]
        write_rows(folder.path(generate.ANSWERS.format(model=model)), rows, Answer.COLUMNS)
    return folder


class FakeJudge:
    """Scores by the model's mean, with chance by prompt; right answers of known pairs win."""

    def __init__(self, **means: float) -> None:
        self.means = {name.replace("_", "-"): mean for name, mean in means.items()}
        self.asked: list[int] = []

    def __call__(self, job: Any, tables: Iterable[Any], unfinished: Path, pool: Any) -> Path:
        rows = [row for table in tables for row in table.to_pylist()]
        self.asked.append(sum(row["subject"] in self.means for row in rows))
        judged = [
            {"subject": row["subject"], **as_row(self._judgement(row, metric))}
            for row in rows
            for _, _, metric in job.keys_of(row)
        ]
        write_rows(unfinished / "output.parquet", judged, judge_actor.RESULT_COLUMNS)
        return unfinished / "output.parquet"

    def _judgement(self, row: Mapping[str, Any], metric: str) -> Judgement:
        if row["subject"] in self.means:
            score = self.means[row["subject"]] + random.Random(f"{row['subject']}{row['id']}").gauss(0, 0.5)
        else:
            score = 4.0 if row["answer"] == "right" else 2.0
        whole = min(5, max(1, round(score)))
        sha256 = text_sha256(row["answer"])
        return Judgement(
            row["id"], metric, whole, score, f"{row['subject']} {row['id']}", None, sha256, "judge", 0.1
        )


@pytest.fixture(autouse=True)
def without_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "connect", lambda: None)


def judged(
    config: Config, fake: FakeJudge, monkeypatch: pytest.MonkeyPatch, compute: Any = None
) -> tuple[RunFolder, Any]:
    folder = run_with(config, *fake.means)
    monkeypatch.setattr(judge, "compute_tables", compute or fake)
    assert all(folder.path(name).is_file() for name in judge.run(config, folder))
    verdict.run(config, folder)
    return folder, json.loads(folder.path("report/report.json").read_bytes())


@pytest.mark.parametrize(
    "change",
    [
        "judge.gpus=0.5",
        "judge.timeout_s=60",
        "judge.openai.api_key_env=MINE",
        "judge.openai.max_concurrent_requests=2",
        "judge.openai.max_retries=20",
    ],
)
def test_where_and_how_patiently_a_judge_is_asked_decides_no_score(tmp_path: Path, change: str) -> None:
    """Nor is a run refused that was begun when such a field was held to decide one."""
    given, moved, other = (
        config_inputs(judge.STAGE, config_with(tmp_path, *changes))
        for changes in ((), (change,), ("judge.temperature=0.3",))
    )
    assert given == moved
    assert given != other
    refuse_changed(judge.STAGE, {**given, change.partition("=")[0]: "then"}, moved, RunFolder(tmp_path))
    with pytest.raises(RunConflict, match=r"judge\.temperature"):
        refuse_changed(judge.STAGE, given, other, RunFolder(tmp_path))


def test_a_rerun_makes_the_same_report_byte_by_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        judged(config_with(tmp_path / name), FakeJudge(base=3.0, candidate=3.4), monkeypatch)[0]
        for name in ("one", "two")
    ]
    for name in ("report.json", "report.md", "report.html", "difference.png"):
        assert made[0].path("report", name).read_bytes() == made[1].path("report", name).read_bytes()


def test_texts_stand_beside_their_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report fetches them from the files, by prompt and model."""
    folder, report = judged(config_with(tmp_path), FakeJudge(base=3.0, candidate=3.6), monkeypatch)
    scores = {
        model: {row.id: row.expected_score for row in judge.iter_judgements(folder, model)}
        for model in generate.MODELS
    }
    assert len(report["examples"]) == 20
    for row in report["examples"]:
        assert row["messages"] == [{"role": "user", "content": f"question {int(row['id'][1:])}"}]
        for model in generate.MODELS:
            assert row[model]["answer"] == f"{model:>12} to {row['id']}"
            assert row[model]["score"] == scores[model][row["id"]]
            assert row[model]["feedback"] == f"{model} {row['id']}"


def test_answers_to_other_prompts_are_refused(tmp_path: Path) -> None:
    folder = run_with(config_with(tmp_path), "base")
    path = folder.path(generate.ANSWERS.format(model="base"))
    rows = read_rows(path)
    for changed in (rows[:-1], [rows[1], rows[0], *rows[2:]], [*rows, rows[0]]):
        write_rows(path, changed, Answer.COLUMNS)
        with pytest.raises(RunConflict, match=r"answers/base/part-00000\.parquet: not the answers to"):
            list(generate.in_step(folder, ("base",)))


def test_one_look_judges_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeJudge(base=3.0, candidate=3.6)
    folder, report = judged(config_with(tmp_path), fake, monkeypatch)
    assert fake.asked == [2 * NUM_PROMPTS]
    assert (report["decision"], report["num_prompts"]) == ("promote", NUM_PROMPTS)
    assert folder.read_json("judgements/look.json") == {"look": 0, "of": 1, "num_prompts": NUM_PROMPTS}


LOOKS = "verdict.sequential={looks: [0.5, 1.0]}"


def test_a_clear_gain_ends_the_judging_at_the_first_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeJudge(base=3.0, candidate=4.0)
    _, report = judged(config_with(tmp_path, LOOKS), fake, monkeypatch)
    assert fake.asked == [NUM_PROMPTS]
    assert (report["decision"], report["num_prompts"], report["rule"]["look"]) == ("promote", 30, 0)
    assert report["rule"]["alpha"] == pytest.approx(0.00305, abs=2e-5)


def test_without_a_clear_gain_all_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeJudge(base=3.0, candidate=3.05)
    _, report = judged(config_with(tmp_path, LOOKS), fake, monkeypatch)
    assert fake.asked == [NUM_PROMPTS, NUM_PROMPTS], "no answer is judged twice"
    assert (report["decision"], report["num_prompts"], report["rule"]["look"]) == (
        "inconclusive",
        NUM_PROMPTS,
        1,
    )


def refuse(folder: RunFolder, model: str, ids: Sequence[str]) -> None:
    """Some of a model's answers become refusals."""
    path = folder.path(generate.ANSWERS.format(model=model))
    refusal = {"answer": "I'm sorry, but I can't help with that."}
    rows = [{**row, **(refusal if row["id"] in ids else {})} for row in read_rows(path)]
    write_rows(path, rows, Answer.COLUMNS)


def test_a_guard_that_is_broken_on_all_answers_ends_the_judging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees them all at the first look, those too that are not judged yet."""
    config = config_with(tmp_path, LOOKS)
    fake = FakeJudge(base=3.0, candidate=4.0)
    folder = run_with(config, *fake.means)
    later = judge.look_order((f"p{n:02d}" for n in range(NUM_PROMPTS)), config.seed)[NUM_PROMPTS // 2 :]
    refuse(folder, "candidate", later[:12])
    monkeypatch.setattr(judge, "compute_tables", fake)
    judge.run(config, folder)
    verdict.run(config, folder)
    report = folder.read_json("report/report.json")
    assert fake.asked == [NUM_PROMPTS]
    assert (report["decision"], report["clause"]) == ("keep_base", "guard")
    assert report["answers"]["candidate"]["num_answers"] == NUM_PROMPTS
    assert report["answers"]["candidate"]["refusal_rate"] == 0.2


def test_a_gain_below_the_wanted_one_ends_no_judging_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few rows say little of rare answers that gain much."""
    fake = FakeJudge(base=3.0, candidate=3.2)
    _, report = judged(config_with(tmp_path, LOOKS, "verdict.min_gain=2"), fake, monkeypatch)
    assert fake.asked == [NUM_PROMPTS, NUM_PROMPTS]
    assert (report["decision"], report["clause"], report["rule"]["look"]) == ("keep_base", "min_gain", 1)


def test_a_look_without_any_score_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeJudge(base=3.0, candidate=4.0)
    whole = fake._judgement

    def first_fails(row: Mapping[str, Any], metric: str) -> Judgement:
        found = whole(row, metric)
        if len(fake.asked) > 1 or row["subject"] not in fake.means:
            return found
        return replace(found, score=None, expected_score=None, failure="no_score")

    monkeypatch.setattr(fake, "_judgement", first_fails)
    looks = "verdict.sequential={looks: [0.02, 1.0]}"
    changes = (looks, "verdict.max_failure_share=0.05")
    _, report = judged(config_with(tmp_path, *changes), fake, monkeypatch)
    assert fake.asked == [2, 2 * NUM_PROMPTS - 2]
    assert report["decision"] == "promote"


def test_looks_make_the_judge_stage_depend_on_the_rule(tmp_path: Path) -> None:
    assert not any(name.startswith("verdict") for name in judge.STAGE.extra_inputs(config_with(tmp_path)))
    depends = judge.STAGE.extra_inputs(config_with(tmp_path, LOOKS))
    assert depends["verdict.min_gain"] == "0.0"


@pytest.mark.parametrize(
    ("looks", "batches", "base_apart"),
    [
        ("verdict.sequential={looks: [1.0]}", ((0, 16), (16, 40)), True),
        ("verdict.sequential={looks: [1.0]}", ((0, 16), (16, NUM_PROMPTS)), False),
        (LOOKS, ((0, 16), (16, 40), (40, NUM_PROMPTS)), True),
    ],
)
def test_judgements_of_micro_batches_are_those_of_the_stage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    looks: str,
    batches: Sequence[tuple[int, int]],
    base_apart: bool,
) -> None:
    means = {"base": 3.0, "candidate": 3.05, "candidate_2": 3.1}
    plain, _ = judged(config_with(tmp_path / "plain", looks), FakeJudge(**means), monkeypatch)
    config, fake = config_with(tmp_path / "beside", looks), FakeJudge(**means)
    folder = run_with(config, *fake.means)
    monkeypatch.setattr(judge, "compute_tables", fake)
    look = judge.first_look(config, folder)
    if base_apart:
        judge.base_ahead(config, folder, folder)
    for batch in batches:
        judge.begin_batch(config, folder, batch)
        judge.batch_ahead(look, config, folder, batch)
    assert len(fake.asked) == len(batches) + base_apart
    judged(config, fake, monkeypatch, compute=taken_up(fake))
    assert sum(fake.asked) == 3 * NUM_PROMPTS, "nothing is judged twice"
    for subject in judge.subjects(folder):
        name = judge.JUDGEMENTS.format(subject=subject)
        assert read_rows(folder.path(name)) == read_rows(plain.path(name))
    assert folder.path("report/report.json").read_bytes() == plain.path("report/report.json").read_bytes()


def taken_up(fake: FakeJudge) -> Any:
    """The same judge, which finds what it judged before."""

    def compute(job: Any, tables: Iterable[Any], unfinished: Path, pool: Any) -> Path:
        output = unfinished / "output.parquet"
        return output if output.exists() else fake(job, tables, unfinished, pool)

    return compute


def test_an_early_look_sees_prompts_by_chance() -> None:
    ids = [f"p{n}" for n in range(100)]
    ordered = judge.look_order(ids, 0)
    assert 10 < sum(row_id in ids[:50] for row_id in ordered[:50]) < 40
    assert ordered == judge.look_order(ids[::-1], 0)
    assert judge.look_sizes((0.3, 1.0), 88) == [26, 88]


def test_the_best_of_three_candidates_is_reported_and_promoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_with(tmp_path, "verdict.num_candidates=3", f"registry={tmp_path}/registry")
    fake = FakeJudge(base=3.0, candidate=3.1, candidate_2=3.8, candidate_3=2.9)
    folder, report = judged(config, fake, monkeypatch)
    assert generate.models_of(folder) == ("base", "candidate", "candidate-2", "candidate-3")
    assert (report["decision"], report["candidate"]) == ("promote", "candidate-2")
    assert report["models"]["candidate"]["sha256"] == "candidate-2"
    assert [row["candidate"] for row in report["candidates"]] == ["candidate", "candidate-2", "candidate-3"]
    needed = {*judge.STAGE.more_needs(folder), *verdict.STAGE.more_needs(folder)}
    assert "answers/candidate-3/part-00000.parquet" in needed
    assert "judgements/candidate-3/part-00000.parquet" in needed
    assert promote.winner(report["decision"], report["candidate"], has_champion=True) == "candidate-2"


def test_every_kept_adapter_is_exported(tmp_path: Path) -> None:
    folder = open_run(str(tmp_path), "r")
    for name in ("best", "best-2"):
        folder.write(f"tune/{name}/adapter_config.json", b"{}")
    assert export.candidates(folder) == {"candidate": "tune/best", "candidate-2": "tune/best-2"}
    assert "tune/best-2/adapter_model.safetensors" in export.STAGE.more_needs(folder)


def test_trust_is_measured_for_each_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = judged(config_with(tmp_path), FakeJudge(base=3.0, candidate=3.0), monkeypatch)
    trust = folder.read_json("judgements/trust.json")
    assert trust["by_metric"][METRIC]["agreement"] == trust["agreement"] == 1.0


def test_two_metrics_of_one_name_are_refused(tmp_path: Path) -> None:
    text = "name: Same\ncriteria: c\nrubric: {0: bad, 1: good}\nrequired_inputs: [query]\n"
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(text)
    config = config_with(tmp_path, f"judge.metrics=[{tmp_path}/a.yaml, {tmp_path}/b.yaml]")
    with pytest.raises(ConfigError, match=r"judge\.metrics: .*a\.yaml: another metric has the name 'Same'"):
        judge.check(config, list)


def test_a_metric_without_a_reference_is_tested_on_all_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pair has another right answer, so that the metric beside it is tested on none."""
    own = tmp_path / "own.yaml"
    own.write_text("name: Own\ncriteria: c\nrubric: {1: bad, 5: good}\nrequired_inputs: [query]\n")
    config = config_with(tmp_path, f"judge.metrics=[{METRIC}, {own}]", "judge.trust.reference=other")
    folder, report = judged(config, FakeJudge(base=3.0, candidate=3.8), monkeypatch)
    by_metric = folder.read_json("judgements/trust.json")["by_metric"]
    assert [by_metric[name]["pairs"] for name in (METRIC, "Own")] == [0, config.judge.trust.num_pairs]
    assert by_metric["Own"]["self_referenced"] == 0
    assert by_metric["Own"]["consistency"] == 1.0
    assert report["decision"] == "promote"


def test_pairs_with_a_reference_are_repeated_too(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("name: Own\ncriteria: c\nrubric: {1: bad, 5: good}\nrequired_inputs: [query]\n")
    config = config_with(tmp_path, f"judge.metrics=[{METRIC}, {own}]", "judge.trust.num_repeats=2")
    pairs = [Pair(f"k{n}", "s", (Message("user", "q"),), f"right {n}", "wrong") for n in range(6)]
    rows = judge.trust_rows(config, pairs, {"k3": "a", "k4": "b", "k5": "c"})
    repeated = [row["id"] for row in rows if row["subject"] == "repeat"][::2]
    assert repeated == ["k0/chosen", "k1/chosen", "k3/chosen", "k4/chosen"]
    assert sum(row["subject"] == "trust" for row in rows) == 12
