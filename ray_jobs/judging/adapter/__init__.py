"""Adapters that a judge model judges with, and the one that this project brings."""

from pathlib import Path

from ray_jobs.errors import ModelError
from ray_jobs.records import text_sha256
from serving.storage.remote import local_path

BUNDLED = "bundled:judge-adapter"
FILE = Path(__file__).with_name("judge-adapter.gguf")
"""For bundled:smollm2-135m-instruct; made by configs/judge-adapter.yaml."""
SHA256 = "12ff8f17114e7b9f40321639c31ff7b232c6671a42c08ab63a8c18ed3fd00d5b"
ADAPTER = "judge"
"""The adapter's name in the engine."""


def adapter_path(spec: str) -> Path:
    """The GGUF that `judge.adapter` names. Raises ModelError when there is none."""
    path = FILE if spec == BUNDLED else local_path(spec).resolve()
    if path.is_file():
        return path
    if spec == BUNDLED:
        raise ModelError(f"judge.adapter: {spec} is not part of this installation")
    raise ModelError(f"judge.adapter: {spec}: no such file; it may be a path or {BUNDLED}")


def judge_sha256(model_sha256: str, adapter: str) -> str:
    """Names model and adapter together: judgements are kept by it."""
    from ray_jobs.export.base import default_cache_dir
    from ray_jobs.export.hashes import remembered_sha256

    return text_sha256(f"{model_sha256} {remembered_sha256(adapter_path(adapter), default_cache_dir())}")
