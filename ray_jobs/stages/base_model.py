"""The base model of a run, which stays the one that its data were made with."""

from typing import TYPE_CHECKING

from ray_jobs.config import Config
from ray_jobs.errors import RunConflict
from ray_jobs.runs import RunFolder

if TYPE_CHECKING:
    from ray_jobs.export.base import BaseModel

NOTE = "data/base.json"


def base_of(config: Config, folder: RunFolder) -> "BaseModel":
    """The base on local disk. Raises RunConflict when it is not the one that the run began with."""
    from ray_jobs.export.base import default_cache_dir, resolve_base

    base = resolve_base(config.model, default_cache_dir())
    refuse_other(base.name, base.sha256, folder.read_json(NOTE)["sha256"], folder.address)
    return base


def refuse_other(name: str, sha256: str, begun_with: str, where: str) -> None:
    """Raises RunConflict unless a model's files are those that a run began with."""
    if sha256 != begun_with:
        raise RunConflict(
            f"{where}: {name} is another model than the run was begun with (sha256 was {begun_with}, is "
            f"{sha256}); pin model.revision, put its files back, or take another name or --force prepare"
        )
