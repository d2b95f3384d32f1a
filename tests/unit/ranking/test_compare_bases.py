"""Several bases in one command: which runs it means, and how their models are ranked."""

import json
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import compare_bases
from ray_jobs.config import Config, load_config
from ray_jobs.errors import ConfigError, ModelError, StageFailed
from ray_jobs.ranking.ranking import Cost, Entry, common_prompts, rank, scores_of, table
from ray_jobs.ranking.settings import load_comparison
from ray_jobs.records import Answer, Judgement, Message, Prompt, as_row
from ray_jobs.runs import RunFolder, StageState, open_run
from ray_jobs.stages.spent import Spent, keep
from ray_jobs.tables import PROMPT_COLUMNS, write_rows
from serving.engine.errors import EngineError
from serving.storage.remote import StorageError

CONFIGS = Path(__file__).parents[3] / "configs"
SEED = CONFIGS / "seed-comparison.yaml"
METRIC = "RESPONSE_CORRECTNESS_5POINT"
COST = Cost(10**9, 2 * 10**9, 100.0, 50.0, 60.0)


def test_the_seeds_bases_are_runs_alike_but_for_the_base() -> None:
    name, configs = load_comparison(SEED)
    assert name == "seed-comparison"
    bases = ("llama-3.2-1b", "llama-3.2-3b", "phi-3.5-mini", "mistral-small")
    assert tuple(configs) == bases
    for base, config in configs.items():
        alone = load_config(CONFIGS / f"{base}.yaml")
        assert config.name == f"seed-comparison-{base}"
        assert (config.model, config.training, config.search) == (alone.model, alone.training, alone.search)
    first = configs["llama-3.2-1b"]
    for config in configs.values():
        assert (config.data, config.judge, config.generation, config.seed, config.verdict) == (
            first.data,
            first.judge,
            first.generation,
            first.seed,
            first.verdict,
        )


def write(folder: Path, text: str) -> Path:
    (folder / "shared.yaml").write_text(
        (CONFIGS / "smoke.yaml")
        .read_text()
        .replace("model: run:base", "model: bundled:smollm2-135m-instruct")
    )
    (folder / "comparison.yaml").write_text(text)
    return folder / "comparison.yaml"


TWO = "name: two\nconfig: shared.yaml\nbases:\n  one: {model.base: a}\n  other: {model.base: b}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TWO.replace("model.base: b", "data.num_prompts: 3"), "must be the same for all bases"),
        (TWO.replace("model.base: b", "model.bose: b"), "did you mean 'base'?"),
        (TWO.replace("  other: {model.base: b}\n", ""), "bases: "),
        (TWO.replace("other:", "../other:"), "may hold letters"),
        (TWO.replace("model.base: b", "engine.settings.context_tokens: 256"), "must be the same for all"),
        (TWO.replace("config:", "conf:"), "conf: unknown field; did you mean 'config'?"),
        ((CONFIGS / "smoke.yaml").read_text(), "is the config of one run; a comparison has name, config and"),
    ],
)
def test_what_is_wrong_is_named(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"comparison\.yaml") as caught:
        load_comparison(write(tmp_path, text))
    assert says in str(caught.value)


def test_a_judge_that_differs_between_bases_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, TWO)
    (tmp_path / "shared.yaml").write_text((CONFIGS / "smoke.yaml").read_text())
    with pytest.raises(ConfigError, match="run:base is another judge for each base"):
        load_comparison(path)


def test_a_base_may_search_other_ranks(tmp_path: Path) -> None:
    one = "one: {model.base: a, search.space.lora.rank: {choice: [2]}}"
    _, configs = load_comparison(write(tmp_path, TWO.replace("one: {model.base: a}", one)))
    ranks = {base: config.search.space["lora.rank"].values for base, config in configs.items()}
    assert ranks == {"one": (2,), "other": (4, 8)}


def entry(base: str, model: str, scores: dict[str, float], cost: Cost = COST) -> Entry:
    return Entry(base, model, scores, len(scores), 20.0, cost)


def test_the_ranking_is_by_mean_score_on_common_prompts() -> None:
    ids = [f"p{number}" for number in range(40)]
    good = {key: 4.0 + (number % 2) for number, key in enumerate(ids)}
    near = {key: good[key] + (0.1 if number % 4 == 0 else -0.1) for number, key in enumerate(ids)}
    poor = {key: 2.0 + (number % 2) for number, key in enumerate(ids)}
    entries = [
        entry("a", "base", poor),
        entry("a", "candidate", good),
        entry("b", "base", {**near, "x": 1.0}),
    ]
    assert common_prompts(entries) == sorted(ids)
    places = rank(entries, level=0.95, num_resamples=500, seed=0)
    assert [place.name for place in places] == ["a, tuned", "b", "a"]
    assert [place.rank for place in places] == [1, 2, 3]
    assert places[0].mean_score == pytest.approx(4.5)
    assert places[0].ci is not None
    assert places[0].ci[0] < 4.5 < places[0].ci[1]
    assert places[2].behind_best == pytest.approx(-2.0)
    assert places[2].told_apart
    assert places[1].behind_best == pytest.approx(-0.05)
    assert not any(
        place.told_apart for place in rank(entries, level=0.95, num_resamples=500, seed=0, decides=False)
    )
    page = table(places, {"c": "is gated"}, num_prompts=40, level=0.95, metric="m")
    assert "Nothing is told apart" not in page
    assert "| 1 | a, tuned | 4.500 (" in page
    assert "| 3 | a | 2.500 (" in page
    assert "| | c | failed: is gated |" in page


def test_a_tie_is_not_told_apart_and_the_smaller_file_goes_first() -> None:
    scores = {f"p{number}": float(number % 5) for number in range(30)}
    large = entry("large", "base", scores, Cost(2 * 10**9, None, None, None, None))
    places = rank([large, entry("small", "base", scores)], level=0.95, num_resamples=500, seed=0)
    assert [place.base for place in places] == ["small", "large"]
    assert not places[1].told_apart


@pytest.mark.parametrize("behind", [[-1.0, -0.5], [-1.0, -1.0, -1.0], [-1.0] * 5])
def test_a_few_prompts_tell_nobody_apart(behind: list[float]) -> None:
    """Whatever their interval says: so few signs fall alike by chance."""
    best = {f"p{number}": 4.0 for number in range(len(behind))}
    other = {key: 4.0 + distance for (key, distance) in zip(best, behind, strict=True)}
    entries = [entry("a", "base", best), entry("b", "base", other)]
    assert not rank(entries, level=0.95, num_resamples=500, seed=0)[1].told_apart


def test_the_level_is_shared_by_all_pairs_of_models() -> None:
    """The data choose the best of six: it could have been any, so 15 comparisons count, not 5."""
    best = {f"p{number}": 4.0 for number in range(9)}
    near = {key: 3.5 - number / 20 for number, key in enumerate(best)}  # nine signs alike: p = 2 / 2**9
    entries = [entry("a", "base", best), entry("b", "base", near)]
    others = [entry(f"c{number}", "base", dict.fromkeys(best, 1.0)) for number in range(4)]
    assert 0.05 / 15 < 2 / 2**9 < 0.05 / 5
    assert rank(entries, level=0.95, num_resamples=500, seed=0)[1].told_apart
    assert not rank([*entries, *others], level=0.95, num_resamples=500, seed=0)[1].told_apart


def test_prompts_of_one_cluster_are_no_more_than_one() -> None:
    best = {f"p{number:02d}": 4.0 for number in range(60)}
    other = {key: 3.5 + number // 20 * 0.1 for number, key in enumerate(best)}
    entries = [entry("a", "base", best), entry("b", "base", other)]
    clusters = {key: number // 20 for number, key in enumerate(best)}
    assert rank(entries, level=0.95, num_resamples=500, seed=0)[1].told_apart
    assert not rank(entries, level=0.95, num_resamples=500, seed=0, clusters=clusters)[1].told_apart


def test_models_without_common_prompts_cannot_be_ranked() -> None:
    with pytest.raises(StageFailed, match="0 prompts have a score for all 2 models"):
        common_prompts([entry("a", "base", {"x": 1.0}), entry("b", "base", {"y": 1.0})])


def judgement(
    row_id: str, score: int | None, expected: float | None, failure: str | None = None
) -> Judgement:
    return Judgement(row_id, "m", score, expected, None, failure, "", "", 0.1)


def test_scores_are_expected_ones_where_there_are_and_failures_have_none() -> None:
    rows = [judgement("a", 4, 3.6), judgement("b", 2, None), judgement("c", None, None, "no_score")]
    assert scores_of(rows, "m") == {"a": 3.6, "b": 2.0}
    assert scores_of(rows, "other") == {}


TRUST = {"trusted": True, "pairs": 40, "agreement": 0.9, "ci95": [0.8, 0.96], "level": 0.95}


def finished_run(config: Config, shift: float, unscored: int = 0, **trusts: dict[str, Any]) -> None:
    """A run folder as far as the ranking reads it; the candidate is `shift` better than 3.0.

    `unscored`: answers of the base without a score; `trusts`: by metric, for others than METRIC too.
    """
    folder = RunFolder(Path(config.storage) / config.name)
    folder.set_state("tune", StageState("done", "", {}, {}, "", "", 120.0))
    by_metric = trusts or {METRIC: TRUST}
    folder.write_json("judgements/trust.json", {**next(iter(by_metric.values())), "by_metric": by_metric})
    for model, mean in (("base", 3.0), ("candidate", 3.0 + shift)):
        folder.write_json(f"models/{model}/manifest.json", {"bytes": 5 * 10**8})
        keep(folder, model, Spent(10.0, 2, 3, 200, 7 * 10**8))
        answers = [Answer(f"p{n}", "", "", "", "yes", 5, 0, 10, "stop", 0.1) for n in range(20)]
        scores = [
            Judgement(f"p{n}", metric, None, None, None, "no_score", "", "", 0.1)
            if model == "base" and n < unscored
            else Judgement(f"p{n}", metric, 3, mean + n % 2 + number, None, None, "", "", 0.1)
            for number, metric in enumerate(by_metric)
            for n in range(20)
        ]
        write_rows(
            folder.path(f"answers/{model}/part-00000.parquet"), [as_row(a) for a in answers], Answer.COLUMNS
        )
        write_rows(
            folder.path(f"judgements/{model}/part-00000.parquet"),
            [as_row(s) for s in scores],
            Judgement.COLUMNS,
        )


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A comparison of three bases of which the third is gated; the runs are made up. Gives its arguments."""
    ran: list[str] = []

    def run(config: Config, stages: Any, forced: Any) -> None:
        assert "promote" not in stages
        ran.append(config.name)
        if config.model.base == "gated":
            raise ModelError("gated: is gated: accept its licence")
        finished_run(config, {"a": 0.5, "b": 1.0}[config.model.base])

    monkeypatch.setattr(compare_bases, "run", run)
    path = write(tmp_path, TWO + "  third: {model.base: gated}\n")
    return [str(path), "--set", f"storage={tmp_path / 'runs'}", "--set", "verdict.num_resamples=200"]


def test_bases_are_run_ranked_and_a_failed_one_is_listed(
    three: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare_bases.main([*three, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [(place["rank"], place["name"]) for place in found["ranking"]] == [
        (1, "other, tuned"),
        (2, "one, tuned"),
        (3, "one"),
        (4, "other"),
    ]
    assert found["failed"] == {"third": "gated: is gated: accept its licence"}
    assert found["ranking"][0]["cost"] == {
        "file_bytes": 5 * 10**8,
        "memory_bytes": 7 * 10**8,
        "answer_tokens_per_s": 20.0,
        "answer_tokens_per_s_and_core": 20.0 / 6,
        "tuning_s": 120.0,
    }
    assert (found["num_prompts"], found["metric"], found["undecided"]) == (20, METRIC, None)
    assert found["judge_trust"] == {"one": TRUST, "other": TRUST}
    assert [place["told_apart"] for place in found["ranking"]] == [False, True, True, True]
    assert {(place["num_judged"], place["num_unscored"]) for place in found["ranking"]} == {(20, 0)}
    assert found["runs"] == {"one": "two-one", "other": "two-other"}
    kept = tmp_path / "runs" / "two"
    assert {**json.loads((kept / "ranking.json").read_text()), "exit_code": 1} == found
    page = (kept / "ranking.md").read_text()
    assert "| 1 | other, tuned | 4.500 (" in page
    assert "| 0.50 GB | 0.70 GB | 20 | 3 | 2 min 00 s |" in page
    assert "| 4 | other | 3.500 (" in page
    assert "| 0 of 20 |" in page
    assert {line.count("|") for line in page.splitlines()[2:]} == {13}


UNTRUSTED = {**TRUST, "trusted": False, "agreement": 0.5, "ci95": [0.3, 0.7]}


def ranked(tmp_path: Path, *changes: str, **given: Any) -> tuple[dict[str, Any], str]:
    """The ranking of two bases, as data and as a page. `given`: of the second one's run."""
    changes = (f"storage={tmp_path / 'runs'}", "verdict.num_resamples=200", *changes)
    _, configs = load_comparison(write(tmp_path, TWO), changes)
    trusts = given.pop("trusts", {})
    finished_run(configs["one"], 0.5, **dict.fromkeys(trusts, TRUST))
    finished_run(configs["other"], 1.0, **given, **trusts)
    return compare_bases.ranked("two", configs, {})


def test_a_judge_that_is_not_trusted_tells_nothing_apart(tmp_path: Path) -> None:
    found, page = ranked(tmp_path, trusts={METRIC: UNTRUSTED})
    says = (
        "judge not trusted (agrees with 50 % of 40 known pairs, 95 % interval 30 % to 70 %) "
        f"by {METRIC} in the run of other"
    )
    assert found["undecided"] == says
    assert f"**Nothing is told apart**: {says}." in page
    assert not any(place["told_apart"] for place in found["ranking"])
    assert found["judge_trust"] == {"one": TRUST, "other": UNTRUSTED}
    blind, _ = ranked(tmp_path, "verdict.require_trust=false", trusts={METRIC: UNTRUSTED})
    assert blind["undecided"] is None
    assert any(place["told_apart"] for place in blind["ranking"])


def test_answers_without_a_score_are_counted_and_many_tell_nothing_apart(tmp_path: Path) -> None:
    found, page = ranked(tmp_path, unscored=3)
    (other,) = (place for place in found["ranking"] if place["name"] == "other")
    assert (other["num_unscored"], other["num_judged"], found["num_prompts"]) == (3, 20, 17)
    assert "| 3 of 20 |" in page
    says = f"15.0 % of the answers of other have no score by {METRIC}, the limit is 2.0 %"
    assert (found["undecided"], f"**Nothing is told apart**: {says}." in page) == (says, True)
    assert not any(place["told_apart"] for place in found["ranking"])
    few, _ = ranked(tmp_path, "verdict.max_failure_share=0.2", unscored=3)
    assert few["undecided"] is None
    assert any(place["told_apart"] for place in few["ranking"])


def test_models_are_ranked_by_the_metric_that_decides_the_verdicts(tmp_path: Path) -> None:
    """The first one of the rule by which the judge is trusted in every run."""
    second = "RESPONSE_CORRECTNESS_3POINT"
    both = f"judge.metrics=[{METRIC}, {second}]"
    means = {METRIC: 4.5, second: 5.5}
    for more, trusts, metric in (
        ((), {METRIC: TRUST, second: TRUST}, METRIC),
        ((f"verdict.metrics=[{second}]",), {METRIC: TRUST, second: TRUST}, second),
        ((), {METRIC: UNTRUSTED, second: TRUST}, second),
        ((), {METRIC: UNTRUSTED, second: UNTRUSTED}, METRIC),
    ):
        found, page = ranked(tmp_path, both, *more, trusts=trusts)
        assert (found["metric"], found["ranking"][0]["mean_score"]) == (metric, means[metric])
        assert f"Mean score by {metric} of 20 prompts" in page


def test_clusters_are_those_of_the_runs_prompts(tmp_path: Path) -> None:
    """By `verdict.cluster_by`, for the ranking as for the verdicts."""
    changes = [f"storage={tmp_path}", "verdict.cluster_by=source"]
    config = load_config(CONFIGS / "smoke.yaml", changes)
    folder = open_run(config.storage, config.name)
    prompts = [Prompt(f"p{n}", f"s{n % 2}", (Message("user", "q"),)) for n in range(3)]
    write_rows(folder.path("data/prompts.parquet"), [as_row(row) for row in prompts], PROMPT_COLUMNS)
    assert compare_bases.clusters_of(config) == {"p0": 0, "p1": 1, "p2": 0}
    assert compare_bases.clusters_of(load_config(CONFIGS / "smoke.yaml", changes[:1])) is None


class RayError(Exception):
    """As what Ray raises on a cluster."""

    __module__ = "ray.exceptions"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (EngineError("too little memory"), "too little memory"),
        (StorageError("s3://b: no answer"), "s3://b: no answer; the same command goes on from here"),
        (RayError("worker died\n  the node is gone\n"), "the node is gone"),
    ],
)
def test_whatever_fails_in_one_base_does_not_stop_the_others(
    three: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    says: str,
) -> None:
    made_up = compare_bases.run

    def run(config: Config, stages: Any, forced: Any) -> None:
        if config.model.base == "gated":
            raise error
        made_up(config, stages, forced)

    monkeypatch.setattr(compare_bases, "run", run)
    assert compare_bases.main([*three, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["failed"] == {"third": says}
    assert len(found["ranking"]) == 4


def test_a_bug_keeps_its_traceback(three: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: Config, stages: Any, forced: Any) -> None:
        raise KeyError(config.name)

    monkeypatch.setattr(compare_bases, "run", run)
    with pytest.raises(KeyError):
        compare_bases.main(three)


def test_the_plan_and_a_mistake_are_json_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_bases.main([str(SEED), "--check", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["exit_code"], len(found["bases"])) == ("seed-comparison", 0, 4)
    assert all(one["plan"]["tune"] for one in found["bases"].values())
    assert compare_bases.main([str(SEED), "--check", "--json", "--set", "seed=abc"]) == 2
    assert "seed: must be a valid integer" in json.loads(capsys.readouterr().out)["error"]


def test_check_prints_the_plan_of_each_base(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_bases.main([str(SEED), "--check"]) == 0
    out = capsys.readouterr().out
    assert out.count("== ") == 4
    assert "microsoft/Phi-3.5-mini-instruct" in out
