"""The winner becomes the champion that the endpoint serves."""

import logging
from pathlib import Path

from ray_jobs.config import Config
from ray_jobs.runs import RunFolder
from ray_jobs.stages.base import Stage

log = logging.getLogger(__name__)


def run(config: Config, folder: RunFolder) -> list[str]:
    from serving.registry import Registry

    registry = Registry(Path(config.registry))
    champion = registry.champion()
    model = winner(folder.read_json("report/report.json")["decision"], has_champion=champion is not None)
    if model is None:
        log.info("promote  the champion stays as it is")
        return [record(folder, None)]
    manifest = folder.read_json(f"models/{model}/manifest.json")
    if champion is None or champion.sha256 != manifest["sha256"]:
        registry.promote(
            folder.path("models", model, "model.gguf"),
            sha256=manifest["sha256"],
            run=config.name,
            report=folder.path("report/report.json"),
        )
    log.info("promote  the %s model of run %s is the champion in %s", model, config.name, config.registry)
    return [record(folder, model)]


def winner(decision: str, *, has_champion: bool) -> str | None:
    """Which model of the run becomes champion; None leaves the registry as it is.

    Only a verdict promotes a candidate. A registry without any champion takes the base, so that
    there is something to serve.
    """
    if decision == "promote":
        return "candidate"
    return None if has_champion else "base"


def record(folder: RunFolder, model: str | None) -> str:
    folder.write_json("promoted.json", {"model": model})
    return "promoted.json"


STAGE = Stage(
    name="promote",
    settings=("name",),
    needs=(
        "report/report.json",
        *(f"models/{model}/manifest.json" for model in ("base", "candidate")),
    ),
    folders=(),
    run=run,
    extra_inputs=lambda config: {"registry": str(Path(config.registry).resolve())},
)
