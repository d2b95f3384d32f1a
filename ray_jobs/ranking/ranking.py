"""Which of several models is best, on the prompts that all of them have a score for."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ray_jobs.errors import StageFailed
from ray_jobs.logs import duration
from ray_jobs.records import Judgement
from ray_jobs.verdict.statistics import enough_resamples, mean_interval, sign_flip_p


@dataclass(frozen=True)
class Cost:
    """What a model takes; None where it was not measured."""

    file_bytes: int
    memory_bytes: int | None
    """Most that a process with one engine held while it answered."""
    answer_tokens_per_s: float | None
    """Of all engines together, while they answered the evaluation prompts."""
    answer_tokens_per_s_and_core: float | None
    tuning_s: float | None


@dataclass(frozen=True)
class Entry:
    """A model that takes part: a base, or what tuning made of it."""

    base: str
    model: str
    scores: Mapping[str, float]
    """Prompt ID -> score."""
    num_judged: int
    """Answers that were given to the judge, those without a score too."""
    mean_answer_tokens: float
    cost: Cost

    @property
    def num_unscored(self) -> int:
        return self.num_judged - len(self.scores)

    @property
    def unscored_share(self) -> float:
        return self.num_unscored / max(1, self.num_judged)

    @property
    def name(self) -> str:
        return f"{self.base}, tuned" if self.model == "candidate" else self.base


@dataclass(frozen=True)
class Place:
    """A line of the ranking. Scores in the units of the judge's rubric; intervals are two-sided."""

    rank: int
    name: str
    base: str
    model: str
    mean_score: float
    ci: tuple[float, float] | None
    behind_best: float
    behind_best_ci: tuple[float, float] | None
    told_apart: bool
    """Whether the interval of the distance to the best one lies below 0, and a sign-flip test agrees; of
    scores that may decide."""
    num_judged: int
    num_unscored: int
    """Of these, answers without a score."""
    mean_answer_tokens: float
    cost: Cost

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def scores_of(judgements: Iterable[Judgement], metric: str) -> dict[str, float]:
    """Prompt ID -> expected score, or the sampled one where there is none; unscored rows are left out."""
    found = {}
    for row in judgements:
        value = row.expected_score if row.expected_score is not None else row.score
        if row.metric == metric and row.failure is None and value is not None:
            found[row.id] = float(value)
    return found


def common_prompts(entries: Sequence[Entry]) -> list[str]:
    """Prompts that every model has a score for. Raises StageFailed when there are too few to rank by."""
    shared = set.intersection(*(set(entry.scores) for entry in entries))
    if len(shared) < 2:
        fewest = min(entries, key=lambda entry: len(entry.scores))
        raise StageFailed(
            f"comparison: {len(shared)} prompts have a score for all {len(entries)} models; "
            f"{fewest.name} has {len(fewest.scores)}"
        )
    return sorted(shared)


def rank(
    entries: Sequence[Entry],
    *,
    level: float,
    num_resamples: int,
    seed: int,
    clusters: Mapping[str, int] | None = None,
    decides: bool = True,
) -> list[Place]:
    """The models by mean score, best first.

    Distances to the best are paired, prompt by prompt. The scores say which one is best, so the level is
    shared out among all pairs of models (Bonferroni). `clusters`: prompt ID -> cluster, where prompts are not
    independent. `decides`: whether the scores may tell models apart.
    """
    shared = common_prompts(entries)
    rows = {entry.name: np.array([entry.scores[key] for key in shared]) for entry in entries}
    ordered = sorted(entries, key=lambda entry: (-rows[entry.name].mean(), entry.cost.file_bytes, entry.name))
    best = rows[ordered[0].name]
    alpha = (1 - level) / max(1, math.comb(len(entries), 2))
    options: dict[str, Any] = {
        "num_resamples": enough_resamples(num_resamples, alpha),
        "seed": seed,
        "clusters_B": None if clusters is None else np.array([clusters[key] for key in shared]),
    }
    places = []
    for number, entry in enumerate(ordered, start=1):
        own = rows[entry.name]
        behind = None if number == 1 else mean_interval(own - best, level=1 - alpha, **options).ends
        below = decides and behind is not None and behind[1] < 0
        places.append(
            Place(
                rank=number,
                name=entry.name,
                base=entry.base,
                model=entry.model,
                mean_score=math.fsum(own) / len(own),
                ci=mean_interval(own, level=level, **options).ends,
                behind_best=math.fsum(own - best) / len(own),
                behind_best_ci=behind,
                told_apart=below and sign_flip_p(own - best, **options)[0] <= alpha,
                num_judged=entry.num_judged,
                num_unscored=entry.num_unscored,
                mean_answer_tokens=entry.mean_answer_tokens,
                cost=entry.cost,
            )
        )
    return places


def table(
    places: Sequence[Place],
    failed: Mapping[str, str],
    *,
    num_prompts: int,
    level: float,
    metric: str,
    undecided: str | None = None,
) -> str:
    """The ranking as Markdown. `undecided`: why nothing is told apart, where the scores may not do so."""
    lines = [
        f"Mean score by {metric} of {num_prompts} prompts that all models have a score for, with {level:.0%} "
        "intervals; distances to the best are paired and share the level among all pairs of models.",
        "",
        *((f"**Nothing is told apart**: {undecided}.", "") if undecided else ()),
        "| | model | score | no score | behind the best | told apart | answer tokens | file | memory "
        "| tokens/s | per core | tuning |",
        "| ---: | --- | --- | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for place in places:
        cost = place.cost
        cells = (
            str(place.rank),
            place.name,
            f"{place.mean_score:.3f} {_ends(place.ci, '')}",
            f"{place.num_unscored} of {place.num_judged}",
            "" if place.rank == 1 else f"{place.behind_best:+.3f} {_ends(place.behind_best_ci)}",
            "" if place.rank == 1 else ("yes" if place.told_apart else "no"),
            f"{place.mean_answer_tokens:.0f}",
            _size(cost.file_bytes),
            "" if cost.memory_bytes is None else _size(cost.memory_bytes),
            _number(cost.answer_tokens_per_s),
            _number(cost.answer_tokens_per_s_and_core),
            "" if cost.tuning_s is None else duration(cost.tuning_s),
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| | {base} | failed: {reason} | | | | | | | | | |" for base, reason in failed.items()]
    return "\n".join(lines) + "\n"


def _ends(interval: tuple[float, float] | None, sign: str = "+") -> str:
    return "" if interval is None else f"({interval[0]:{sign}.3f} to {interval[1]:{sign}.3f})"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
