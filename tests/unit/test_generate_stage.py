"""What an answering actor is told, and the rows that it writes."""

from pathlib import Path
from typing import Any

import pytest

from ray_jobs.config import load_config
from ray_jobs.records import Answer
from ray_jobs.runs import RunFolder, open_run
from ray_jobs.stages.generate import actor_spec, failed_answer
from serving.engine.calibrate import write
from serving.engine.calibration import Calibration, Trial, cpu_name
from serving.engine.settings import EngineSettings

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A base and a candidate whose files differ in their size a little."""
    run = open_run(str(tmp_path), "r")
    for model, size in (("base", 1000), ("candidate", 1003)):
        run.write(f"models/{model}/model.gguf", b"x" * size)
        run.write_json(f"models/{model}/manifest.json", {"sha256": model})
    return run


def spec_of(folder: RunFolder, model: str, **settings: Any) -> dict[str, Any]:
    config = load_config(CONFIGS / "local.yaml")
    engine = config.engine.model_copy(update={"settings": EngineSettings(**settings)})
    return actor_spec(config.model_copy(update={"engine": engine}), folder, model)


def test_auto_means_one_backend_for_all_models(folder: RunFolder, tmp_path: Path) -> None:
    rates = {"answer_tokens_per_s": 9.0, "prompt_tokens_per_s": 1.0}
    fast = Trial(backend="openvino", recipe="given", lanes=1, slots=48, **rates)
    calibration = tmp_path / "calibration.json"
    write(Calibration(cpu=cpu_name(), cores=2, model_bytes=1000, trials=(fast,)), calibration)
    for model in ("base", "candidate"):
        plain = spec_of(folder, model, backend="auto")
        assert plain["backend"] == "llama_cpp"
        found = spec_of(folder, model, backend="auto", calibration=str(calibration))
        assert found["backend"] == "openvino"
        assert EngineSettings.model_validate_json(found["engine"]).backend == "openvino"


def test_rows_say_which_backend_wrote_them(folder: RunFolder) -> None:
    spec = spec_of(folder, "candidate", backend="openvino")
    prompt = {"id": "p", "source": "s", "messages": [{"role": "user", "content": "?"}]}
    (row,) = failed_answer(prompt, "engine_died", spec=spec)
    assert Answer.from_row(row).backend == "openvino"
    del row["backend"]  # of a run made before there was such a column
    assert Answer.from_row(row).backend is None
