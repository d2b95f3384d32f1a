"""An engine on the node where an actor runs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.engine import Engine
    from serving.engine.settings import EngineSettings

log = logging.getLogger(__name__)


def open_engine(model: Path, settings: EngineSettings) -> Engine:
    """The engine, on cores of its own if there are enough, else on what the node has, beside who owns them.

    Others own them where an endpoint or another run is on the machine, or where Ray was told of more CPUs
    than the node has cores: hyper-threads, or more than a container grants. Slower is better than a run that
    ends here. Raises ModelLoadError and ModelMismatch.
    """
    from serving.engine import Engine
    from serving.engine.errors import CoresUnavailable
    from serving.engine.topology import usable_cores

    try:
        return Engine.open(model, settings)
    except CoresUnavailable as error:
        log.warning("the engine shares its cores with others: %s", error)
    cores = min(settings.cores, len(usable_cores() or ()) or settings.cores)
    lanes = settings.lanes if settings.lanes == "auto" else min(settings.lanes, cores)
    return Engine.open(model, settings.model_copy(update={"pin": False, "cores": cores, "lanes": lanes}))
