"""What an engine has done and is doing."""

from __future__ import annotations

from dataclasses import dataclass, fields

LATENCY_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Histogram:
    """Counts of durations under fixed bounds, as Prometheus has them."""

    def __init__(self) -> None:
        self.counts = [0] * (len(LATENCY_BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[sum(seconds > bound for bound in LATENCY_BOUNDS_S)] += 1
        self.sum_s += seconds


class Counters:
    """One lane's running totals; written by its thread alone, so that counting takes no lock."""

    def __init__(self) -> None:
        self.requests_done = 0
        self.requests_failed = 0
        self.requests_cancelled = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.answer_tokens = 0
        self.steps = 0
        self.rows = 0
        self.compute_s = 0.0
        self.busy_s = 0.0
        self.active = 0
        self.kv_tokens = 0
        self.first_token = Histogram()
        self.per_token = Histogram()


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """A snapshot. Totals count from the opening of the engine; seconds are wall-clock."""

    requests_done: int
    requests_failed: int
    requests_cancelled: int
    requests_active: int
    requests_queued: int
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that did not have to be computed."""
    answer_tokens: int
    steps: int
    """Forward passes."""
    rows: int
    """Tokens computed in them."""
    compute_s: float
    """Spent in forward passes, over all lanes."""
    busy_s: float
    """Spent with work at hand, over all lanes; compute_s / busy_s is the share that is not overhead."""
    num_slots: int
    kv_tokens: int
    """Tokens held in the key/value cache now, for running answers and for reuse."""
    kv_capacity_tokens: int
    first_token_counts: tuple[int, ...]
    first_token_sum_s: float
    per_token_counts: tuple[int, ...]
    per_token_sum_s: float

    @property
    def prefix_hit_rate(self) -> float:
        """Share of prompt tokens that did not have to be computed, 0 to 1."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def batch_fill(self) -> float:
        """Mean tokens per forward pass."""
        return self.rows / self.steps if self.steps else 0.0

    def to_prometheus(self, prefix: str = "engine") -> str:
        """The text exposition format, version 0.0.4."""
        lines: list[str] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not field.name.endswith("_sum_s"):
                kind = "gauge" if field.name in _GAUGES else "counter"
                name = f"{prefix}_{field.name}" if kind == "gauge" else f"{prefix}_{field.name}_total"
                lines += [f"# TYPE {name} {kind}", f"{name} {value}"]
        lines += _histogram(f"{prefix}_first_token_seconds", self.first_token_counts, self.first_token_sum_s)
        lines += _histogram(f"{prefix}_per_token_seconds", self.per_token_counts, self.per_token_sum_s)
        return "\n".join(lines) + "\n"


_GAUGES = {"requests_active", "requests_queued", "num_slots", "kv_tokens", "kv_capacity_tokens"}


def _histogram(name: str, counts: tuple[int, ...], sum_s: float) -> list[str]:
    lines, seen = [f"# TYPE {name} histogram"], 0
    for bound, count in zip((*map(str, LATENCY_BOUNDS_S), "+Inf"), counts, strict=True):
        seen += count
        lines.append(f'{name}_bucket{{le="{bound}"}} {seen}')
    return [*lines, f"{name}_sum {sum_s}", f"{name}_count {seen}"]


_SUMMED = (
    "requests_done",
    "requests_failed",
    "requests_cancelled",
    "prompt_tokens",
    "cached_tokens",
    "answer_tokens",
    "steps",
    "rows",
    "compute_s",
    "busy_s",
    "kv_tokens",
)


def snapshot(lanes: list[Counters], *, num_queued: int, num_slots: int, context_tokens: int) -> EngineMetrics:
    """Add up the lanes' counters."""

    def column(pick: str) -> tuple[int, ...]:
        return tuple(map(sum, zip(*(getattr(lane, pick).counts for lane in lanes), strict=True)))

    sums = {name: sum(getattr(lane, name) for lane in lanes) for name in _SUMMED}
    return EngineMetrics(
        **sums,
        requests_active=sum(lane.active for lane in lanes),
        requests_queued=num_queued,
        num_slots=num_slots,
        kv_capacity_tokens=num_slots * context_tokens,
        first_token_counts=column("first_token"),
        first_token_sum_s=sum(lane.first_token.sum_s for lane in lanes),
        per_token_counts=column("per_token"),
        per_token_sum_s=sum(lane.per_token.sum_s for lane in lanes),
    )
