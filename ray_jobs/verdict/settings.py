"""What it takes to replace the base, as a config states it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ray_jobs.settings import Section

Share = Annotated[float, Field(ge=0, le=1)]


class Guards(Section):
    """Limits that a candidate must hold whatever the judge says. Null switches a guard off."""

    program_accuracy_max_drop: Share | None = 0.02
    """How far program-checked accuracy may fall, as a share; not applied where no prompt has a check."""
    program_accuracy_min_gain: Share | None = None
    """How much program-checked accuracy must rise, as a share. Where an untrusted judge leaves the
    decision to program checks, the whole interval must lie above it (null: above 0)."""
    refusal_rate_max_rise: Share | None = 0.05
    """How far the share of answers that refuse may rise (English phrases at the start of an answer)."""
    courting_rate_max_rise: Share | None = 0.05
    """How far the share of answers that court the judge may rise: that name a score, a rubric or their own
    merits (English phrases), which judges reward beyond what an answer is worth."""
    length_ratio_max: Annotated[float, Field(gt=0)] | None = None
    """Highest ratio of mean answer lengths in characters, candidate over base."""
    tokens_per_second_min_ratio: Annotated[float, Field(gt=0)] | None = None
    """Lowest ratio of generated tokens per second, candidate over base. Timings differ between
    identical runs, so this guard is measured and reported only where it is set."""

    @property
    def wanted_accuracy_gain(self) -> float:
        """What the interval of program-checked accuracy must lie above, where that decides."""
        return self.program_accuracy_min_gain or 0.0


class Sequential(Section):
    """Looks at the results before all rows are in, at bounds that keep the level of the whole."""

    looks: Annotated[tuple[float, ...], Field(min_length=1, max_length=20)] = (1.0,)
    """Shares of the planned prompts at which the results are looked at, rising to 1."""
    spending: Literal["obrien_fleming", "pocock"] = "obrien_fleming"
    """How the level is spent over the looks: little at first, or evenly."""

    @model_validator(mode="after")
    def _looks_rise_to_one(self) -> Self:
        rising = all(a < b for a, b in zip((0.0, *self.looks), self.looks, strict=False))
        if not rising or self.looks[-1] != 1.0:
            raise ValueError("looks: must rise from above 0 to 1.0")
        return self


class VerdictSettings(Section):
    """The decision rule. Scores are in the units of the metric's rubric."""

    metrics: tuple[str, ...] = ()
    """Metrics that the decision rests on, the first one leading the report; empty: all that were judged.
    With several, one must gain (Holm's correction over all of them) and none may fall; those for which the
    judge is not trusted are reported and decide nothing."""
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Confidence level of the decision, two-sided."""
    min_gain: Annotated[float, Field(ge=0)] = 0.0
    """The whole interval of the score difference must lie above this."""
    num_resamples: Annotated[int, Field(ge=200, le=1_000_000)] = 10_000
    """Resamples of the bootstrap and of the permutation test."""
    adjust_length: bool = True
    """A candidate whose answers are longer on average must also win at equal length."""
    require_trust: bool = True
    """A judge that did not prove itself on known pairs cannot promote on its word."""
    when_untrusted: Literal["inconclusive", "program_checks"] = "inconclusive"
    """What decides where the judge is not trusted: nothing, or program-checked accuracy."""
    num_candidates: Annotated[int, Field(ge=1, le=20)] = 1
    """Best trials that are exported, answer and are judged against the base, with Holm's correction for
    their number; the best of them may be promoted."""
    guards: Guards = Guards()
    max_failure_share: Share = 0.02
    """With more unscored answers than this share of the prompts, for either model, nobody wins."""
    cluster_by: Literal["none", "source", "prompt"] = "none"
    """Rows that are not independent: those of a source, or those whose conversations open with the
    same user turn."""
    power: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Power at which minimal detectable differences and numbers of prompts are stated."""
    wished_gain: Annotated[float, Field(gt=0)] | None = None
    """A score difference, above `min_gain`, that the run should be able to see; `--check` says how many
    prompts it takes."""
    expected_sd: Annotated[float, Field(gt=0)] = 1.0
    """Standard deviation of the paired score differences to plan with before any run has measured it."""
    sequential: Sequential = Sequential()
    num_examples: Annotated[int, Field(ge=0, le=1000)] = 20
    """Side-by-side answers in the report: half with the largest gains, half with the largest losses."""

    @model_validator(mode="after")
    def _wishes_for_more_than_the_least(self) -> Self:
        if self.wished_gain is not None and self.wished_gain <= self.min_gain:
            raise ValueError(f"wished_gain: must be above min_gain, which is {self.min_gain:g}")
        return self
