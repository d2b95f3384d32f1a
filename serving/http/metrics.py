"""What the HTTP side counts, in Prometheus' text format 0.0.4."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


def added(texts: Sequence[str]) -> str:
    """Several texts as one, each metric in one place: what has the same name and labels is added up."""
    metrics: dict[str, dict[str, float]] = {}
    for text in texts:
        sums = metrics.setdefault("", {})
        for line in text.splitlines():
            if line.startswith("#"):
                sums = metrics.setdefault(line, {})
            else:
                name, _, value = line.rpartition(" ")
                number = float(value) if "." in value or "e" in value else int(value)
                sums[name] = sums.get(name, 0) + number
    lines = []
    for kind, sums in metrics.items():
        lines += [*([kind] if kind else []), *(f"{name} {value}" for name, value in sums.items())]
    return "".join(f"{line}\n" for line in lines)


def without_gauges(text: str) -> str:
    """What is left of a process, or a part of one, that has ended."""
    lines, is_gauge = [], False
    for line in text.splitlines():
        if line.startswith("#"):
            is_gauge = line.endswith(" gauge")
        if not is_gauge:
            lines.append(line)
    return "".join(f"{line}\n" for line in lines)


def labelled(text: str, name: str, value: str) -> str:
    """The same samples, with one more label each."""
    label, lines = f'{name}="{value}"', []
    for line in text.splitlines():
        sample, _, number = line.rpartition(" ")
        if line.startswith("#"):
            lines.append(line)
        elif sample.endswith("}"):
            lines.append(f"{sample[:-1]},{label}}} {number}")
        else:
            lines.append(f"{sample}{{{label}}} {number}")
    return "".join(f"{line}\n" for line in lines)


class Histogram:
    """Durations under fixed bounds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_s = 0.0

    def add(self, seconds: float) -> None:
        self._counts[sum(seconds > bound for bound in BOUNDS_S)] += 1
        self._sum_s += seconds

    def lines(self, name: str) -> list[str]:
        lines, seen = [f"# TYPE {name} histogram"], 0
        for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), self._counts, strict=True):
            seen += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {seen}')
        return [*lines, f"{name}_sum {self._sum_s}", f"{name}_count {seen}"]


class HttpMetrics:
    """One ingress process."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        """By route and status; a stream that fails counts with the status of its error."""
        self.first_token = Histogram()
        """Seconds from a request's arrival to the first token of its answer; to its end without `stream`."""
        self.duration = Histogram()
        self.disconnects = 0

    def to_prometheus(self, num_inside: int) -> str:
        name = "serving_http_requests_total"
        lines = [f"# TYPE {name} counter"]
        lines += [
            f'{name}{{route="{route}",status="{status}"}} {count}'
            for (route, status), count in sorted(self.requests.items())
        ]
        lines += [
            "# TYPE serving_http_disconnects_total counter",
            f"serving_http_disconnects_total {self.disconnects}",
        ]
        lines += ["# TYPE serving_http_inside gauge", f"serving_http_inside {num_inside}"]
        lines += self.first_token.lines("serving_http_first_token_seconds")
        lines += self.duration.lines("serving_http_request_seconds")
        return "\n".join(lines) + "\n"
