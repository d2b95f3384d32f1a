"""Tells the configured trackers what a run folder holds: as often as wished, nothing twice."""

import logging
from collections.abc import Callable

from ray_jobs.config import Config
from ray_jobs.runs import RunFolder
from ray_jobs.tracking.figures import without_passwords

log = logging.getLogger(__name__)


def publish(config: Config, folder: RunFolder) -> None:
    """Brings the configured trackers up to date; what goes wrong there is logged, and stops no other one."""
    tracking = config.tracking
    if (uri := tracking.mlflow_uri) is not None:
        from ray_jobs.tracking.to_mlflow import to_mlflow

        _tell(f"mlflow {uri}", lambda: to_mlflow(config, folder, uri))
    if (settings := tracking.wandb) is not None:
        from ray_jobs.tracking.to_wandb import to_wandb

        _tell(f"wandb {settings.project}", lambda: to_wandb(config, folder, settings))


def _tell(tracker: str, tell: Callable[[], None]) -> None:
    try:
        tell()
    except Exception as error:  # whatever a tracker raises, the run itself stands
        said = f"{tracker}: {' '.join(str(error).split())[:300]}"
        log.warning("tracking %s", without_passwords(said))
        log.debug("tracking failed", exc_info=error)
