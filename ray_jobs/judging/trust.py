"""Whether the judge's word counts: does it prefer the better answer of pairs whose order is known?

Each pair's two answers are judged on their own, as in the evaluation; the judge agrees when the chosen one
gets the higher expected score (the score, where probabilities are missing). A tie counts half, and so does a
pair that the judge could not score on both sides: what a judge cannot tell it does not know. Pairs on one
prompt are not independent, so the interval is that of as many pairs as there are prompts, or fewer where some
have more pairs than others (Kish's effective number). Trusted when the exact interval of the agreement
(Clopper and Pearson's) lies above one half plus the margin: a coin passes no oftener than the level says,
which Wilson's shorter interval does not keep to where pairs are few.

Metrics with a reference. The judge then compares an answer with a right one, in the evaluation as here. To
hand it the chosen answer as the reference of itself would ask only whether two texts are the same, which
needs no judge. So the reference is another pair's different right answer to the same prompt, and a pair
without one is left out. Where a prompt has one right answer (its reference in the evaluation is then just
that text too), `reference: chosen` allows it; the report says for how many pairs (`self_referenced`).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ray_jobs.errors import DataError
from ray_jobs.judging.inputs import JudgeItem
from ray_jobs.judging.settings import TrustSettings
from ray_jobs.records import Judgement, Pair, Prompt, prompt_sha256

CHOSEN, REJECTED = "chosen", "rejected"
SIMILAR_LENGTH = 0.1
"""Answers whose lengths differ by at most this share of the longer one are `similar`."""


@dataclass(frozen=True)
class Agreement:
    """How often the judge preferred the chosen answer, ties half; `ci95` is None without pairs."""

    pairs: int
    agreement: float | None
    ci95: tuple[float, float] | None


@dataclass(frozen=True)
class JudgeTrust:
    """How far the judge is to be trusted. `ci95` holds the interval at the configured level, 95 % by default.

    `consistency`: share of repeated judgements, under another seed, with the same score; None if none was
    repeated.
    """

    pairs: int
    agreement: float | None
    ci95: tuple[float, float] | None
    level: float
    trusted: bool
    ties: int
    unscored: int
    self_referenced: int
    consistency: float | None
    by_source: dict[str, Agreement]
    by_length_difference: dict[str, Agreement]


def trust_references(
    pairs: Sequence[Pair], mode: Literal["other", "chosen"], references: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Pair id -> the reference that it is judged against, for the pairs that have one.

    `references`: known right answers by prompt hash, apart from the pairs' own (a prompt may have both).
    """
    right_answers: dict[str, list[str]] = defaultdict(list)
    for pair in pairs:
        right_answers[prompt_sha256(pair.prompt)].append(pair.chosen)
    found: dict[str, str] = {}
    for pair in pairs:
        key = prompt_sha256(pair.prompt)
        others = [*([references[key]] if references and key in references else []), *right_answers[key]]
        distinct = [
            text for text in others if text.strip() not in (pair.chosen.strip(), pair.rejected.strip())
        ]
        if distinct:
            found[pair.id] = distinct[0]
        elif mode == "chosen":
            found[pair.id] = pair.chosen
    return found


def trust_items(
    pairs: Iterable[Pair], references: Mapping[str, str] | None = None, *, keep_all: bool = False
) -> list[JudgeItem]:
    """Both answers of each pair as items `<pair id>/chosen` and `<pair id>/rejected`.

    `references`: from trust_references, for metrics that compare with one; pairs without an entry are left
    out, or with `keep_all`, for metrics that want none, have no reference. Raises DataError for a repeated
    pair id.
    """
    items = []
    seen: set[str] = set()
    for pair in pairs:
        if pair.id in seen:
            raise DataError(f"pair {pair.id}: the id stands twice")
        seen.add(pair.id)
        reference = None if references is None else references.get(pair.id)
        if references is not None and reference is None and not keep_all:
            continue
        prompt = Prompt(pair.id, pair.source, pair.prompt, reference)
        items.append(JudgeItem(f"{pair.id}/{CHOSEN}", prompt, pair.chosen))
        items.append(JudgeItem(f"{pair.id}/{REJECTED}", prompt, pair.rejected))
    return items


def judge_trust(
    pairs: Sequence[Pair],
    judgements: Iterable[Judgement],
    settings: TrustSettings | None = None,
    *,
    repeats: Iterable[Judgement] = (),
    references: Mapping[str, str] | None = None,
) -> JudgeTrust:
    """The judge's agreement with the pairs. `judgements` are of trust_items(pairs); `repeats` of some of them
    again.

    Pairs without judgements (those that trust_items left out) do not count.
    """
    settings = settings or TrustSettings()
    by_id = {judgement.id: judgement for judgement in judgements}
    judged = [pair for pair in pairs if f"{pair.id}/{CHOSEN}" in by_id and f"{pair.id}/{REJECTED}" in by_id]
    points = {
        pair.id: _points(by_id[f"{pair.id}/{CHOSEN}"], by_id[f"{pair.id}/{REJECTED}"]) for pair in judged
    }
    whole = _agreement(judged, points, settings.level)
    return JudgeTrust(
        pairs=whole.pairs,
        agreement=whole.agreement,
        ci95=whole.ci95,
        level=settings.level,
        trusted=whole.ci95 is not None and whole.ci95[0] > 0.5 + settings.margin,
        ties=sum(value == 0.5 for value in points.values()),
        unscored=sum(value is None for value in points.values()),
        self_referenced=sum((references or {}).get(pair.id) == pair.chosen for pair in judged),
        consistency=_consistency(by_id, repeats),
        by_source=_slices(judged, lambda pair: pair.source, points, settings.level),
        by_length_difference=_slices(judged, _length_class, points, settings.level),
    )


def repeated_items(items: Sequence[JudgeItem], num_pairs: int) -> list[JudgeItem]:
    """The items of the first pairs, to be judged again under another seed."""
    return list(items[: 2 * num_pairs])


def _points(chosen: Judgement, rejected: Judgement) -> float | None:
    """1 if the chosen answer scored higher, 0 if the rejected one did, 0.5 for a tie, None if one has no
    score."""
    if chosen.score is None or rejected.score is None:
        return None
    better, worse = float(chosen.score), float(rejected.score)
    if chosen.expected_score is not None and rejected.expected_score is not None:
        better, worse = chosen.expected_score, rejected.expected_score
    return 0.5 if better == worse else float(better > worse)


def _agreement(pairs: Sequence[Pair], points: Mapping[str, float | None], level: float) -> Agreement:
    if not pairs:
        return Agreement(0, None, None)
    from statsmodels.stats.proportion import proportion_confint

    agreed = [0.5 if (value := points[pair.id]) is None else value for pair in pairs]
    agreement = sum(agreed) / len(agreed)
    of_prompts = Counter(prompt_sha256(pair.prompt) for pair in pairs).values()
    number = len(pairs) ** 2 / sum(count**2 for count in of_prompts)
    low, high = proportion_confint(agreement * number, number, alpha=1 - level, method="beta")
    return Agreement(len(pairs), agreement, (float(low), float(high)))


def _slices(
    pairs: Sequence[Pair], label_of: Callable[[Pair], str], points: Mapping[str, float | None], level: float
) -> dict[str, Agreement]:
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[label_of(pair)].append(pair)
    return {label: _agreement(groups[label], points, level) for label in sorted(groups)}


def _length_class(pair: Pair) -> str:
    """By characters: whether the better answer is also the longer one, which a judge may take for better."""
    chosen, rejected = len(pair.chosen), len(pair.rejected)
    if abs(chosen - rejected) <= SIMILAR_LENGTH * max(chosen, rejected):
        return "similar"
    return "chosen_longer" if chosen > rejected else "chosen_shorter"


def _consistency(first: Mapping[str, Judgement], repeats: Iterable[Judgement]) -> float | None:
    """Of the judgements that have a score both times."""
    both = [(first[again.id].score, again.score) for again in repeats if again.id in first]
    same = [before == after for before, after in both if before is not None and after is not None]
    return sum(same) / len(same) if same else None
