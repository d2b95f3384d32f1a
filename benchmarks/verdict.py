"""How often a verdict is wrong: false promotions, coverage of its intervals, power against what was planned.

    python -m benchmarks.verdict [--quick] [--json FILE] [--judgements FOLDER FOLDER [--metric NAME]]

Evaluations are drawn with replacement from paired judgements of one model under two seeds, and each goes
through the product's own statistics and decision rule. `--judgements` names two folders of judgement files of
a real run (`runs/<name>/judgements/<model>`); without them the pool is simulated: five-point rubric, expected
scores, prompts of differing difficulty, a third of the answers equal under both seeds, scores that rise a
little with length. Each row of the pool enters in both orders, so that the true difference is exactly 0; a
planted effect lifts the candidate's answers by random amounts within the rubric, so that it is known exactly.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from statsmodels.stats.proportion import proportion_confint

from benchmarks import harness
from ray_jobs.verdict.decide import Evidence, MetricEvidence, Trust, decide
from ray_jobs.verdict.length import length_adjusted
from ray_jobs.verdict.looks import nominal_alphas
from ray_jobs.verdict.planning import predicted_power
from ray_jobs.verdict.settings import VerdictSettings
from ray_jobs.verdict.statistics import Floats, Labels, compare, holm, sign_flip_p

LOW, HIGH = 1.0, 5.0
RESAMPLES = 2000
LOOKS = (0.5, 1.0)
NUM_CANDIDATES = 5
TRUSTED = Trust(True, 60, 0.9, (0.8, 0.95))
RULE = VerdictSettings(num_resamples=RESAMPLES)
NO_LENGTH_CLAUSE = RULE.model_copy(update={"adjust_length": False})


@dataclass(frozen=True)
class Population:
    """Candidate-minus-base differences of scores and of lengths; its mean is the truth."""

    differences: Floats
    lengths: Floats

    @property
    def mean(self) -> float:
        return float(self.differences.mean())


@dataclass(frozen=True)
class Outcome:
    promoted: bool
    promoted_without_length_clause: bool
    covered: bool


def simulated_pool(rng: np.random.Generator, size: int = 4000) -> tuple[Floats, Floats]:
    """Scores and lengths of one model's answers under two seeds, (2, size) each."""
    difficulty = rng.normal(3.2, 0.9, size)
    lengths = rng.lognormal(6.0, 0.6, (2, size))
    noise = rng.normal(0.0, 0.7, (2, size))
    same = rng.random(size) < 1 / 3
    lengths[1, same], noise[1, same] = lengths[0, same], noise[0, same]
    return np.clip(difficulty + noise + 0.0005 * (lengths - 450), LOW, HIGH), lengths


def real_pool(folders: Sequence[Path], metric: str | None) -> tuple[Floats, Floats]:
    """The same from judgement files by one metric, joined by row.

    Lengths are those of the answers in the same run's folder; 0 where there are none.
    """
    scores = [_scores(folder, metric) for folder in folders]
    keys = sorted(scores[0].keys() & scores[1].keys())
    if not keys:
        sys.exit(f"no row is scored in both {folders[0]} and {folders[1]}")
    lengths = [_lengths(folder.parents[1] / "answers" / folder.name) for folder in folders]
    return _table(scores, keys), _table(lengths, keys)


def _table(columns: Sequence[dict[str, float]], keys: Sequence[str]) -> Floats:
    return np.array([[column.get(key, 0.0) for key in keys] for column in columns], dtype=np.float64)


def _scores(folder: Path, metric: str | None) -> dict[str, float]:
    rows = _rows(folder, ["id", "metric", "score", "expected_score"])
    found = sorted({row["metric"] for row in rows})
    if metric is None and len(found) > 1:
        sys.exit(f"{folder}: judged by {', '.join(found)}; choose one with --metric")
    return {
        row["id"]: row["score"] if row["expected_score"] is None else row["expected_score"]
        for row in rows
        if row["score"] is not None and metric in (None, row["metric"])
    }


def _lengths(folder: Path) -> dict[str, float]:
    if not folder.is_dir():
        return {}
    return {row["id"]: float(len(row["answer"] or "")) for row in _rows(folder, ["id", "answer"])}


def _rows(folder: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Of the Parquet files in a folder, which holds others too."""
    import pyarrow.parquet as pq

    files = sorted(folder.glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file, columns=list(columns)).to_pylist()]


def population(scores: Floats, lengths: Floats, effect: float, rng: np.random.Generator) -> Population:
    """Both orders of every row; the candidate's answers lifted by `effect` points before the rubric's end."""
    lift = rng.exponential(effect, scores.shape) if effect else np.zeros(scores.shape)
    lifted = np.clip(scores + lift, LOW, HIGH)
    differences = np.concatenate([lifted[1] - scores[0], lifted[0] - scores[1]])
    return Population(differences, np.concatenate([lengths[1] - lengths[0], lengths[0] - lengths[1]]))


def evaluate(
    differences: Floats,
    lengths: Floats,
    truth: float,
    *,
    alpha: float,
    seed: int,
    clusters: Labels | None = None,
    p_holm: float | None = None,
) -> Outcome:
    """One verdict by a trusted judge on these rows; `p_holm` where it is one of several candidates."""
    level = 1 - alpha
    paired = compare(differences, level=level, num_resamples=RESAMPLES, seed=seed, clusters_B=clusters)
    metric = MetricEvidence(
        metric="score",
        paired=paired,
        p_gain=paired.p_value,
        p_holm=paired.p_value if p_holm is None else p_holm,
        adjusted=length_adjusted(differences, lengths, level=level, clusters_B=clusters),
        mean_length_difference=float(lengths.mean()),
        min_detectable_difference=None,
        failure_shares={"base": 0.0, "candidate": 0.0},
    )
    evidence = Evidence([metric], alpha, TRUSTED, None, [])
    low, high = paired.interval.ends or (truth, truth)
    return Outcome(
        promoted=decide(evidence, RULE).decision == "promote",
        promoted_without_length_clause=decide(evidence, NO_LENGTH_CLAUSE).decision == "promote",
        covered=low <= truth <= high,
    )


def one_look(pool: Population, num_prompts: int, rng: np.random.Generator) -> Outcome:
    chosen = rng.integers(pool.differences.size, size=num_prompts)
    seed = int(rng.integers(2**31))
    return evaluate(pool.differences[chosen], pool.lengths[chosen], pool.mean, alpha=0.05, seed=seed)


def two_looks(pool: Population, num_prompts: int, rng: np.random.Generator) -> Outcome:
    """Looks at half of the rows and at all; promoted if either look promotes."""
    chosen = rng.integers(pool.differences.size, size=num_prompts)
    outcome = Outcome(False, False, True)
    for share, alpha in zip(LOOKS, nominal_alphas_of_looks(), strict=True):
        rows = chosen[: round(share * num_prompts)]
        found = evaluate(pool.differences[rows], pool.lengths[rows], pool.mean, alpha=alpha, seed=1)
        outcome = replace(
            found,
            promoted=outcome.promoted or found.promoted,
            promoted_without_length_clause=outcome.promoted_without_length_clause
            or found.promoted_without_length_clause,
            covered=outcome.covered and found.covered,
        )
    return outcome


def five_candidates(pool: Population, num_prompts: int, rng: np.random.Generator) -> Outcome:
    """Five candidates against one base; promoted if any is."""
    draws = [rng.integers(pool.differences.size, size=num_prompts) for _ in range(NUM_CANDIDATES)]
    rows = [(pool.differences[chosen], pool.lengths[chosen]) for chosen in draws]
    tests = [sign_flip_p(values, num_resamples=RESAMPLES, seed=1)[0] for values, _ in rows]
    found = [
        evaluate(*one, pool.mean, alpha=0.05, seed=1, p_holm=float(p_value))
        for one, p_value in zip(rows, holm(np.array(tests)), strict=True)
    ]
    return Outcome(
        promoted=any(one.promoted for one in found),
        promoted_without_length_clause=any(one.promoted_without_length_clause for one in found),
        covered=found[0].covered,
    )


def conversations(pool: Population, num_prompts: int, rng: np.random.Generator) -> Outcome:
    """Five rows a conversation that share half of their difference, compared as clusters."""
    labels = np.arange(num_prompts) // 5
    shared = rng.integers(pool.differences.size, size=labels.max() + 1)[labels]
    own = rng.integers(pool.differences.size, size=num_prompts)
    rows = (pool.differences[shared] + pool.differences[own]) / 2
    lengths = (pool.lengths[shared] + pool.lengths[own]) / 2
    return evaluate(rows, lengths, pool.mean, alpha=0.05, seed=1, clusters=labels)


def nominal_alphas_of_looks(cache: list[list[float]] = []) -> list[float]:  # noqa: B006
    """Worked out once: the bounds take longer than an evaluation."""
    if not cache:
        cache.append(nominal_alphas(LOOKS, 0.05, "obrien_fleming"))
    return cache[0]


def scenario(
    name: str,
    pool: Population,
    num_prompts: int,
    repeats: int,
    rng: np.random.Generator,
    draw: Callable[[Population, int, np.random.Generator], Outcome] = one_look,
) -> dict[str, Any]:
    """Rates over `repeats` evaluations, with 95 % Wilson intervals."""
    outcomes = [draw(pool, num_prompts, rng) for _ in range(repeats)]
    row: dict[str, Any] = {"scenario": name, "prompts": num_prompts, "effect": round(pool.mean, 4)}
    for key in ("promoted", "promoted_without_length_clause", "covered"):
        count = sum(getattr(outcome, key) for outcome in outcomes)
        low, high = proportion_confint(count, repeats, method="wilson")
        row[key] = count / repeats
        row[f"{key}_ci95"] = [float(low), float(high)]
    sd = float(pool.differences.std())
    row["predicted_power"] = predicted_power(pool.mean, sd, num_prompts, 0.95) if pool.mean > 1e-9 else None
    return row


def measure(scores: Floats, lengths: Floats, repeats: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    null = population(scores, lengths, 0.0, rng)
    rows = [scenario("A/A", null, number, repeats, rng) for number in (60, 200)]
    rows.append(scenario("A/A, two looks", null, 200, repeats, rng, two_looks))
    rows.append(scenario("A/A, conversations", null, 200, repeats, rng, conversations))
    rows.append(scenario("A/A, five candidates", null, 60, repeats, rng, five_candidates))
    for effect in (0.1, 0.15, 0.2):
        planted = population(scores, lengths, effect, rng)
        rows.append(scenario("planted effect", planted, 200, repeats, rng))
    return rows


def figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The worst false promotion rate, the coverage of all 95 % intervals, the largest miss of power."""
    null = [row for row in rows if row["predicted_power"] is None]
    plain = [row for row in rows if "two looks" not in row["scenario"]]
    planted = [row for row in rows if row["predicted_power"] is not None]
    misses = [abs(row["promoted_without_length_clause"] - row["predicted_power"]) for row in planted]
    worst = max(null, key=lambda row: row["promoted_without_length_clause"])
    return {
        "false_promotion_rate": worst["promoted_without_length_clause"],
        "false_promotion_rate_ci95_low": worst["promoted_without_length_clause_ci95"][0],
        "false_promotion_rate_ci95_high": worst["promoted_without_length_clause_ci95"][1],
        "interval_coverage": float(np.mean([row["covered"] for row in plain])),
        "interval_coverage_lowest": min(row["covered"] for row in plain),
        "interval_coverage_highest": max(row["covered"] for row in plain),
        "power_error": max(misses),
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    head = f"{'scenario':20} {'prompts':>7} {'effect':>7} {'promoted (95 %)':>24}"
    print(f"{head} {'predicted':>9} {'coverage':>8}")
    for row in rows:
        low, high = row["promoted_without_length_clause_ci95"]
        promoted = f"{row['promoted_without_length_clause']:.3f} ({low:.3f} to {high:.3f})"
        predicted = "" if row["predicted_power"] is None else f"{row['predicted_power']:.3f}"
        print(
            f"{row['scenario']:20} {row['prompts']:7} {row['effect']:7.3f} {promoted:>24} "
            f"{predicted:>9} {row['covered']:8.3f}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    options = harness.parser((__doc__ or "").splitlines()[0])
    options.add_argument("--judgements", type=Path, nargs=2, metavar="FOLDER", help="judgements to draw from")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--metric", help="whose judgements; needed where there are those of several")
    given = options.parse_args(arguments)
    repeats = 200 if given.quick else 1000
    started = time.perf_counter()
    pool = (
        real_pool(given.judgements, given.metric)
        if given.judgements
        else simulated_pool(np.random.default_rng(given.seed))
    )
    rows = measure(*pool, repeats, given.seed)
    print_table(rows)
    work = {
        "what": "verdicts on rows drawn with replacement from paired judgements, by the judge alone",
        "pool": [str(folder) for folder in given.judgements or ()] or "simulated",
        "pool_rows": pool[0].shape[1],
        "repeats": repeats,
        "resamples": RESAMPLES,
        "seconds": round(time.perf_counter() - started, 1),
        "versions": {name: version(name) for name in ("scipy", "statsmodels")},
        "rows": rows,
    }
    harness.report(figures(rows), work, given.json)


if __name__ == "__main__":
    main()
