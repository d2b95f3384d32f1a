"""`export.quantization: auto`: the number format that calibration found fastest and good enough."""

from pathlib import Path

import pytest

from ray_jobs.errors import ConfigError
from ray_jobs.export.recipe import recipe_name, with_recipe
from ray_jobs.export.settings import ExportSettings
from serving.engine.calibrate import write
from serving.engine.calibration import Calibration, Quality, Trial

AUTO = ExportSettings(quantization="auto")


@pytest.fixture
def calibration(tmp_path: Path) -> str:
    rates = {"q8_0": 5.0, "q4_0": 9.0, "q4_0-bf16": 10.0, "q4_0-pure": 12.0}
    kept = {"q8_0": 0.97, "q4_0": 0.86, "q4_0-bf16": 0.85, "q4_0-pure": 0.74}
    found = Calibration(
        cpu="any",
        cores=2,
        model_bytes=1,
        trials=tuple(
            Trial(
                backend="llama_cpp",
                recipe=name,
                lanes=1,
                slots=8,
                answer_tokens_per_s=rate,
                prompt_tokens_per_s=1.0,
            )
            for name, rate in rates.items()
        ),
        quality=tuple(
            Quality(recipe=name, perplexity=9.0, greedy_agreement=share, megabytes=1.0)
            for name, share in kept.items()
        ),
    )
    path = tmp_path / "found.json"
    write(found, path)
    return str(path)


@pytest.mark.parametrize(
    ("least", "expected"),
    [
        (0.9, ("q8_0", False, None)),
        (0.86, ("q4_0", False, None)),
        (0.8, ("q4_0", False, "bf16")),
        (0.5, ("q4_0", True, None)),
    ],
)
def test_the_fastest_that_keeps_enough(
    calibration: str, least: float, expected: tuple[str, bool, str | None]
) -> None:
    chosen = with_recipe(AUTO.model_copy(update={"min_greedy_agreement": least}), calibration)
    assert (chosen.quantization, chosen.pure, chosen.embedding) == expected
    names = {0.9: "q8_0", 0.86: "q4_0", 0.8: "q4_0-bf16", 0.5: "q4_0-pure"}
    assert recipe_name(chosen) == names[least]


def test_what_calibration_says_of_the_embedding_replaces_what_is_named(calibration: str) -> None:
    named = AUTO.model_copy(update={"embedding": "q8_0", "min_greedy_agreement": 0.9})
    assert with_recipe(named, calibration).embedding is None


def test_what_is_named_stays_and_without_a_calibration_it_is_q4_0(calibration: str) -> None:
    named = ExportSettings(quantization="q6_k")
    assert with_recipe(named, calibration) is named
    assert with_recipe(AUTO, None).quantization == "q4_0"


def test_an_unquantised_file_has_one_format() -> None:
    with pytest.raises(ValueError, match="embedding: bf16 files are bf16 throughout"):
        ExportSettings(quantization="bf16", embedding="q8_0")


def test_refusals_name_the_field(calibration: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"export\.quantization: .* keeps 99%"):
        with_recipe(AUTO.model_copy(update={"min_greedy_agreement": 0.99}), calibration)
    with pytest.raises(ConfigError, match=r"engine\.settings\.calibration: .*none\.json"):
        with_recipe(AUTO, str(tmp_path / "none.json"))
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(ConfigError, match=r"engine\.settings\.calibration: .*broken\.json"):
        with_recipe(AUTO, str(broken))
