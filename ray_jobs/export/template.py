"""Stub."""
from pathlib import Path

from ray_jobs.errors import ModelError


def template_from_hf(hf_dir: Path, out: Path) -> Path:
    raise ModelError(f"{hf_dir}: give its GGUF as `model.gguf`")
