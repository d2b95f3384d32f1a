"""The base and the best adapter as GGUF files of one recipe."""

import logging
from functools import partial

from ray_jobs.config import Config
from ray_jobs.runs import RunFolder
from ray_jobs.stages.base import Stage

log = logging.getLogger(__name__)


def run(config: Config, folder: RunFolder) -> list[str]:
    from ray_jobs.export.base import default_cache_dir, resolve_base
    from ray_jobs.export.export import export_model

    base = resolve_base(config.model, default_cache_dir())
    outputs = []
    for model, adapter in (("base", None), ("candidate", folder.path("tune/best"))):
        export_model(
            base,
            adapter,
            folder.path("models", model),
            config.export,
            on_step=partial(log.info, "export   %s: %s", model),
        )
        outputs += [f"models/{model}/model.gguf", f"models/{model}/manifest.json"]
    return outputs


STAGE = Stage(
    name="export",
    settings=("export", "model"),
    needs=(
        "data/base.json",
        "tune/best/adapter_model.safetensors",
        "tune/best/adapter_config.json",
    ),
    folders=("models",),
    run=run,
)
