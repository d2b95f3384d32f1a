"""The winner becomes the champion that the endpoint serves."""

import logging
from typing import TYPE_CHECKING

from ray_jobs.config import Config
from ray_jobs.errors import StageFailed
from ray_jobs.runs import RunFolder
from ray_jobs.stages.base import Stage
from ray_jobs.stages.generate import models_of
from serving.storage.remote import absolute

if TYPE_CHECKING:
    from serving.registry import Champion, Registry

log = logging.getLogger(__name__)

CARD = "models/{model}/README.md"


def run(config: Config, folder: RunFolder) -> list[str]:
    from serving.engine.errors import EngineError
    from serving.registry import RegistryError

    try:
        model = promote(config, folder)
    except (RegistryError, EngineError) as error:
        raise StageFailed(f"promote: {error}") from error
    card = write_card(config, folder)
    folder.write_json("promoted.json", {"model": model})
    return ["promoted.json", card]


def write_card(config: Config, folder: RunFolder) -> str:
    """The model card of the candidate that the report names, whatever was decided."""
    from ray_jobs.export.card import model_card
    from ray_jobs.search.trials import ranked_trials
    from ray_jobs.stages.trial_table import read_trials

    report = folder.read_json("report/report.json")
    name = report.get("candidate", "candidate")
    ranked = ranked_trials(read_trials(folder.path("tune/trials.parquet")), config.search.objective)
    card = model_card(
        config,
        report,
        folder.read_json(f"models/{name}/manifest.json"),
        folder.read_json("data/report.json"),
        ranked[models_of(folder).index(name) - 1].config,
    )
    relative = CARD.format(model=name)
    folder.write(relative, card.encode())
    return relative


def promote(config: Config, folder: RunFolder) -> str | None:
    """Puts the winner into the registry, with the base beside it; gives its name, None if nothing changed."""
    from serving.promote import Candidate
    from serving.promote import promote as make_champion
    from serving.registry import BaseModel, Registry

    registry = Registry.at(config.registry)
    champion = champion_of(registry, folder)
    report = folder.read_json("report/report.json")
    model = winner(
        report["decision"], report.get("candidate", "candidate"), has_champion=champion is not None
    )
    if model is None:
        log.info("promote  the champion stays as it is")
        return None
    files = {name: folder.path("models", name, "model.gguf") for name in ("base", model)}
    sha256 = {name: folder.read_json(f"models/{name}/manifest.json")["sha256"] for name in files}
    if champion is None or champion.sha256 != sha256[model]:
        base = BaseModel(files["base"], sha256["base"])
        report_file = folder.path("report/report.json")
        candidate = Candidate(files[model], sha256[model], config.name, report_file, base)
        make_champion(registry, candidate)
    log.info("promote  the %s model of run %s is the champion in %s", model, config.name, config.registry)
    return model


def champion_of(registry: "Registry", folder: RunFolder) -> "Champion | None":
    """Whom the registry serves; None too where that is a model of this run whose file is gone from there."""
    champion = registry.champion()
    own = [folder.read_json(f"models/{model}/manifest.json")["sha256"] for model in models_of(folder)]
    lost = champion is not None and champion.sha256 in own and not registry.holds(champion)
    return None if lost else champion


def holds(config: Config, folder: RunFolder) -> bool:
    """Whether the registry still has a champion, of this run or of another."""
    from serving.registry import Registry, RegistryError

    try:
        return champion_of(Registry.at(config.registry), folder) is not None
    except RegistryError:  # which `run` tells
        return False


def winner(decision: str, candidate: str, *, has_champion: bool) -> str | None:
    """Which model of the run becomes champion; None leaves the registry as it is.

    Only a verdict promotes a candidate. A registry without any champion takes the base, so that
    there is something to serve.
    """
    if decision == "promote":
        return candidate
    return None if has_champion else "base"


def manifests(folder: RunFolder) -> tuple[str, ...]:
    return tuple(f"models/{model}/manifest.json" for model in models_of(folder))


STAGE = Stage(
    name="promote",
    settings=("name",),
    needs=("report/report.json", "data/report.json", "tune/trials.parquet"),
    folders=(),
    run=run,
    more_needs=manifests,
    extra_inputs=lambda config: {"registry": absolute(config.registry)},
    resumes=False,
    holds=holds,
)
