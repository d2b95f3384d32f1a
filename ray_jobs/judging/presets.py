"""What flow-judge's preset metrics need and offer, known without importing it.

Importing flow_judge takes seconds (it loads torch); a config is checked without it. A test holds this table
against the package's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


def tag_of(name: str) -> str:
    """The tag that flow-judge puts around an input (its format_vars)."""
    return name.lower().replace(" ", "_")


@dataclass(frozen=True)
class MetricOutline:
    """A metric's names, the inputs it needs, the name of its output, and the scores its rubric offers."""

    key: str
    """Its name in configs, judgements and reports: a preset's constant, else the name in its file."""
    name: str
    """Its name for people."""
    required_inputs: tuple[str, ...]
    required_output: str
    scores: tuple[int, ...]

    @property
    def tags(self) -> tuple[str, ...]:
        """Those that flow-judge puts around the inputs and the output."""
        return tuple(tag_of(name) for name in (*self.required_inputs, self.required_output))


class NamedInputs(Protocol):
    """What checks of inputs ask of a metric: a MetricOutline and flow_judge's Metric both have it."""

    @property
    def name(self) -> str: ...
    @property
    def required_inputs(self) -> Sequence[str] | None: ...


_FAMILIES = {"CORRECTNESS": "reference_answer", "FAITHFULNESS": "context", "RELEVANCE": "context"}
_SCALES = {
    "BINARY": ("Binary", (0, 1)),
    "3POINT": ("3-point Likert", (1, 2, 3)),
    "5POINT": ("5-point Likert", (1, 2, 3, 4, 5)),
}

PRESETS: dict[str, MetricOutline] = {
    f"RESPONSE_{family}_{scale}": MetricOutline(
        f"RESPONSE_{family}_{scale}",
        f"Response {family.capitalize()} ({label})",
        ("query", second_input),
        "response",
        scores,
    )
    for family, second_input in _FAMILIES.items()
    for scale, (label, scores) in _SCALES.items()
}
