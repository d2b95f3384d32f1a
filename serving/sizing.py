"""How much the endpoint lets in, and how many replicas it has, by its settings."""

from __future__ import annotations

import os
from typing import Any

from serving.engine import EngineSettings
from serving.settings import ServingSettings


def default_engine() -> EngineSettings:
    """All physical cores that this process may use."""
    from serving.engine.topology import usable_cores

    cores = usable_cores()
    count = len(cores) if cores else os.cpu_count() or 1
    return EngineSettings(cores=count)


def completed(settings: ServingSettings) -> ServingSettings:
    """The settings with an engine, whose queue is bounded, and with the registry's full path."""
    engine = settings.engine or default_engine()
    engine = engine.model_copy(update={"max_queued": settings.max_queued})
    return settings.model_copy(update={"engine": engine, "registry": settings.registry_address})


def num_slots(engine: EngineSettings) -> int:
    """Answers that one replica writes at once."""
    lanes = engine.cores if engine.lanes == "auto" else engine.lanes
    return lanes * (16 if engine.slots == "auto" else engine.slots)


def replica_capacity(settings: ServingSettings) -> int:
    """Answers that run in one replica, or wait in it."""
    assert settings.engine is not None
    return num_slots(settings.engine) + settings.max_queued


def capacity(settings: ServingSettings) -> int:
    """Answers that one ingress process lets in."""
    return replica_capacity(settings) * num_replicas(settings)


def num_replicas(settings: ServingSettings) -> int:
    """The most engine replicas there can be."""
    return settings.max_replicas or settings.replicas


def scaling(settings: ServingSettings) -> dict[str, Any]:
    """Serve's options for the number of engine replicas."""
    assert settings.engine is not None
    if settings.max_replicas is None:
        return {"num_replicas": settings.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": settings.replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": max(1, num_slots(settings.engine) * 3 // 4),
            "metrics_interval_s": min(10.0, settings.scaling_delay_s / 2),
            "look_back_period_s": settings.scaling_delay_s,
            "upscale_delay_s": settings.scaling_delay_s,
            "downscale_delay_s": 20 * settings.scaling_delay_s,
        }
    }
