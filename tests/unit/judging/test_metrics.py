"""Presets and metrics of one's own; what they need of a row."""

import subprocess
import sys
from pathlib import Path

import pytest

from ray_jobs.errors import ConfigError, DataError
from ray_jobs.judging.metrics import check_inputs, input_parts, load_metric, outline_of
from ray_jobs.judging.presets import PRESETS
from ray_jobs.records import Message, Prompt

RUBRIC = """\
  1: It rambles.
  2: It could be shorter.
  3: Nothing can be left out.
"""

OWN = f"""
name: Brevity
criteria: Is the response as short as it can be?
rubric:
{RUBRIC}required_inputs: [query]
required_output: response
"""


def written(folder: Path, text: str) -> str:
    path = folder / "metric.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_presets_are_those_of_flow_judge() -> None:
    from flow_judge import list_all_metrics

    assert sorted(PRESETS) == sorted(list_all_metrics())
    for name, outline in PRESETS.items():
        metric = load_metric(name)
        assert outline.key == name
        assert outline.name == metric.name
        assert list(outline.required_inputs) == metric.required_inputs
        assert outline.required_output == metric.required_output
        assert outline.scores == tuple(sorted(item.score for item in metric.rubric))


def test_metric_of_ones_own(tmp_path: Path) -> None:
    from flow_judge import CustomMetric

    path = written(tmp_path, OWN)
    metric = load_metric(path)
    assert isinstance(metric, CustomMetric)
    assert next((item.score, item.description) for item in metric.rubric) == (1, "It rambles.")
    assert outline_of(path).scores == (1, 2, 3)
    assert outline_of(path).key == "Brevity"


@pytest.mark.parametrize(
    "example", sorted(Path("configs/metrics").glob("*.yaml")), ids=lambda path: path.name
)
def test_examples_load(example: Path) -> None:
    metric = load_metric(str(example))
    assert len(metric.rubric) >= 2
    input_parts(metric, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name: Brevity\n", ""), "name: Field required"),
        (("criteria: Is the response as short as it can be?", "criteria: '  '"), "criteria: is empty"),
        (("required_inputs: [query]\n", ""), "required_inputs: Field required"),
        ((RUBRIC, "  {}\n"), "rubric: needs at least two scores"),
        (("  1: It rambles.\n  2: It could be shorter.\n", ""), "rubric: needs at least two scores"),
        (("1: It rambles.", "-1: It rambles."), "rubric: score -1 is not a whole number from 0"),
        (("1: It rambles.", "low: It rambles."), "rubric.low: Input should be a valid integer"),
        (("1: It rambles.", "1:"), "rubric.1: Input should be a valid string"),
        (("[query]", "[score]"), "required_inputs: 'score' is a tag of the judge's own prompt"),
        (("[query]", "['<b>']"), "required_inputs: '<b>' makes no tag"),
        (("[query]", "[query, Query]"), "required_inputs: the same name stands twice"),
        (("name: Brevity", "nme: Brevity\nname: Brevity"), "nme: Extra inputs are not permitted"),
        (("1: It rambles.", "1: It rambles.\n  1: Twice."), "key '1' stands twice"),
    ],
)  # fmt: skip
def test_wrong_metric_files_name_file_and_field(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    assert change[0] in OWN
    path = written(tmp_path, OWN.replace(*change))
    with pytest.raises(ConfigError) as caught:
        outline_of(path)
    assert path in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match=r"RESPONSE_CORECTNESS.*one of RESPONSE_CORRECTNESS_BINARY"):
        load_metric("RESPONSE_CORECTNESS")
    with pytest.raises(ConfigError, match=r"absent\.yaml: No such file"):
        load_metric("absent.yaml")


def test_missing_inputs_name_metric_input_and_row() -> None:
    turn = Prompt("row-7", "s", (Message("user", "Why?"),))
    with pytest.raises(DataError, match=r"row row-7: .*Response Correctness \(5-point.*'reference_answer'"):
        check_inputs(PRESETS["RESPONSE_CORRECTNESS_5POINT"], [turn])
    with pytest.raises(DataError, match=r"row row-7: .*Response Relevance.*'context' \(earlier_turns\)"):
        check_inputs(PRESETS["RESPONSE_RELEVANCE_BINARY"], [turn])
    check_inputs(PRESETS["RESPONSE_RELEVANCE_BINARY"], [turn], {"context": "conversation"})
    blank = Prompt("row-8", "s", (Message("user", "Why?"),), " \n")
    with pytest.raises(DataError, match="row-8"):
        check_inputs(PRESETS["RESPONSE_CORRECTNESS_5POINT"], [blank])


def test_unknown_input_is_asked_for(tmp_path: Path) -> None:
    outline = outline_of(written(tmp_path, OWN.replace("[query]", "[gold]")))
    with pytest.raises(ConfigError, match=r"judge\.inputs\.gold: metric 'Brevity' needs it"):
        input_parts(outline, {})
    assert input_parts(outline, {"gold": "reference"}) == {"gold": "reference"}


def test_a_config_is_checked_without_flow_judge() -> None:
    code = """
import sys
import ray_jobs.judging.attacks, ray_jobs.judging.judge, ray_jobs.judging.settings, ray_jobs.judging.trust
from ray_jobs.judging.metrics import outline_of
outline_of("RESPONSE_RELEVANCE_BINARY")
sys.exit(any(name in sys.modules for name in ("flow_judge", "torch", "llama_cpp", "openai", "scipy")))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
