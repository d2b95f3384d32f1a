import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_jobs.config import load_config, parse_config, put_change
from ray_jobs.errors import ConfigError
from ray_jobs.stages.base import Stage, config_inputs

CONFIGS = Path(__file__).parents[2] / "configs"
NO_RUNS = ("serve.yaml", "seed-comparison.yaml")
RUN_CONFIGS = sorted(path for path in CONFIGS.glob("*.yaml") if path.name not in NO_RUNS)

DATA = Stage("prepare", ("data",), (), (), lambda *_: [])


@pytest.fixture
def smoke() -> dict[str, Any]:
    data = yaml.safe_load((CONFIGS / "smoke.yaml").read_text())
    assert isinstance(data, dict)
    return data


def put(data: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(data)
    *parents, leaf = dotted.split(".")
    target = changed
    for parent in parents:
        target = target.setdefault(parent, {})
    target[leaf] = value
    return changed


@pytest.mark.parametrize("path", RUN_CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_sound_and_named_after_its_file(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    assert config.engine.settings.backend == "llama_cpp"


def test_the_configs_of_the_design_are_there() -> None:
    names = {path.stem for path in RUN_CONFIGS}
    assert {"smoke", "local", "llama-3.2-1b", "llama-3.2-3b", "phi-3.5-mini", "mistral-small"} <= names


def test_the_reference_config_leaves_toxic_pairs_out_and_names_the_reference_judge() -> None:
    config = load_config(CONFIGS / "llama-3.2-1b.yaml")
    assert "toxic-dpo-v0.2" in config.data.preferences.exclude_sources
    assert config.data.preferences.source == "mlabonne/orpo-dpo-mix-40k"
    assert config.data.prompts.source == "mlabonne/FineTome-100k"
    assert config.judge.model.startswith("flowaicom/Flow-Judge-v0.1-GGUF")
    assert config.workers.gpus_per_worker > 0


def test_numbers_of_trials_are_those_that_the_readme_promises() -> None:
    assert load_config(CONFIGS / "local.yaml").search.num_trials >= 4
    assert load_config(CONFIGS / "smoke.yaml").search.num_trials >= 2


@pytest.mark.parametrize(
    ("dotted", "value", "says"),
    [
        (
            "training.learning_rat",
            1e-4,
            "training.learning_rat: unknown field; did you mean 'learning_rate'?",
        ),
        ("trainin", {}, "trainin: unknown field; did you mean 'training'?"),
        ("training.num_steps", "many", 'training.num_steps: must be a valid integer, not "many"'),
        ("training.num_steps", 0, "training.num_steps: must be greater than or equal to 1, not 0"),
        ("training.learning_rate", float("nan"), "training.learning_rate: must be a finite number"),
        ("training.lora.rnk", 4, "training.lora.rnk: unknown field; did you mean 'rank'?"),
        ("name", "../escape", "name: may hold letters"),
        ("name", "/abs", "name: may hold letters"),
        ("name", "..", "name: may hold letters"),
        ("seed", -1, "seed: must be greater than or equal to 0, not -1"),
        ("seed", True, "seed: must be a valid integer, not true"),
        ("training.seed", 7, "training.seed: the run's seed is used in its place; set seed"),
        ("workers.gpus_per_worker", 1.5, "workers.gpus_per_worker: above 1 must be a whole number, not 1.5"),
        ("training.deepspeed", 2, "training.deepspeed: must be "),
        (
            "training.deepspeed",
            {"zero_optimization": 2},
            "training.deepspeed: zero_optimization: must be a mapping, not 2",
        ),
        (
            "training.deepspeed",
            {"zero_optimization": None},
            "training.deepspeed: zero_optimization: must be a mapping, not null",
        ),
        (
            "training.deepspeed",
            {"zero_optimization": {"stage": "2"}},
            'training.deepspeed: zero_optimization.stage: must be 0, 1, 2 or 3, not "2"',
        ),
        (
            "training.deepspeed",
            {"zero_optimization": {"stage": 4}},
            "training.deepspeed: zero_optimization.stage: must be 0, 1, 2 or 3, not 4",
        ),
        (
            "training.deepspeed",
            {"zero_optimization": {"stage": 3, "offload_param": "cpu"}},
            'training.deepspeed: zero_optimization.offload_param: must be a mapping, not "cpu"',
        ),
        ("search.space.beta", {"uniform": [0.3, 0.1]}, "search.space.beta: the lower bound"),
        ("search.space.betta", {"choice": [0.1]}, "search: space.betta: cannot be searched"),
        ("judge.metrics", ["NO_SUCH"], "NO_SUCH"),
        (
            "generation.max_answer_tokens",
            512,
            "generation.max_answer_tokens leaves 0 of engine.settings.context_tokens",
        ),
        ("model", None, "model: must be"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(
    smoke: dict[str, Any], dotted: str, value: Any, says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(put(smoke, dotted, value), "run.yaml")
    assert str(caught.value).startswith("run.yaml: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        (None, "there is none without training.lora"),
        ({"dora": True}, "DoRA cannot be kept apart from the base"),
    ],
)
def test_an_adapter_that_cannot_be_kept_apart_is_refused(smoke: dict[str, Any], lora: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=f"export.adapter: {says}"):
        parse_config(put(put(smoke, "export.adapter", True), "training.lora", lora), "run.yaml")


@pytest.mark.parametrize(
    ("change", "name", "values"),
    [
        ("search.space.lora.rank={choice: [8, 16]}", "lora.rank", (8, 16)),
        ("search.space.lora.rank.choice=[8]", "lora.rank", (8,)),
        ("search.space.beta={choice: [0.2]}", "beta", (0.2,)),
        ("search.space.beta.uniform=[0.1, 0.2]", "beta", (0.1, 0.2)),
        ("search.space={lora.alpha_over_rank: {grid: [2]}}", "lora.alpha_over_rank", (2,)),
    ],
)
def test_searched_fields_are_changed_by_their_dotted_names(
    change: str, name: str, values: tuple[Any, ...]
) -> None:
    assert load_config(CONFIGS / "smoke.yaml", [change]).search.space[name].values == values


def test_a_searched_field_may_be_new_or_there() -> None:
    data: dict[str, Any] = {}
    for values in ([8], [16]):
        put_change(data, f"search.space.lora.rank={{choice: {values}}}")
        assert data == {"search": {"space": {"lora.rank": {"choice": values}}}}


def test_a_field_that_cannot_be_searched_is_named_whole(smoke: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"search: space\.lora\.rnk: cannot be searched; one of beta, "):
        load_config(CONFIGS / "smoke.yaml", ["search.space.lora.rnk={choice: [8]}"])
    for wrong in ("search.space.=1", "search.space.lora..rank=1", "search..space=1"):
        with pytest.raises(ConfigError, match=r"must have the form dotted\.field=value"):
            load_config(CONFIGS / "smoke.yaml", [wrong])


def test_what_a_run_was_made_with_knows_of_configurations_only_where_one_is_named() -> None:
    path, change = CONFIGS / "smoke.yaml", "data.prompts={source: openai/gsm8k, config: main}"
    for config in (load_config(path), load_config(path, ["seed=7"]), load_config(path, [change])):
        assert parse_config(config.model_dump(mode="json"), "config.yaml") == config
    inputs = [config_inputs(DATA, load_config(path, changes)) for changes in ([], [change])]
    assert "data.prompts.split" in inputs[0]
    assert [name for name in inputs[0] if name.endswith(".config")] == []
    assert [name for name in inputs[1] if name.endswith(".config")] == ["data.prompts.config"]


def test_all_wrong_fields_are_reported_together(smoke: dict[str, Any]) -> None:
    wrong = put(put(smoke, "training.num_steps", 0), "seed", "one")
    with pytest.raises(ConfigError) as caught:
        parse_config(wrong, "run.yaml")
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_a_config_that_is_no_mapping_is_refused(data: Any) -> None:
    with pytest.raises(ConfigError, match="must hold a mapping"):
        parse_config(data, "run.yaml")
