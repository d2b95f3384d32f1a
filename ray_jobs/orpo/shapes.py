"""Sizes of models that need not be on this machine: those that shipped configs name, by their config.json."""

from ray_jobs.errors import ModelError
from ray_jobs.export.families import read_config
from ray_jobs.export.settings import ModelSettings
from ray_jobs.orpo.memory import Shape, shape_of
from serving.storage.remote import local_path

SHAPES = {
    "bundled:smollm2-135m-instruct": Shape("llama", 576, 30, 1536, 9 * 64, 3 * 64, 49152, True),
    "meta-llama/Llama-3.2-1B-Instruct": Shape("llama", 2048, 16, 8192, 32 * 64, 8 * 64, 128256, True),
    "meta-llama/Llama-3.2-3B-Instruct": Shape("llama", 3072, 28, 8192, 24 * 128, 8 * 128, 128256, True),
    "microsoft/Phi-3.5-mini-instruct": Shape("phi3", 3072, 32, 8192, 32 * 96, 32 * 96, 32064, False),
    "mistralai/Mistral-Small-Instruct-2409": Shape(
        "mistral", 6144, 56, 16384, 48 * 128, 8 * 128, 32768, False
    ),
}


def known_shape(model: ModelSettings) -> Shape | None:
    """The base's sizes without loading or downloading anything; None when they are not known here."""
    if model.base in SHAPES:
        return SHAPES[model.base]
    folder = local_path(model.base)
    if not folder.is_dir():
        return None
    try:
        return shape_of(read_config(folder))
    except (ModelError, KeyError, TypeError, ValueError):
        return None
