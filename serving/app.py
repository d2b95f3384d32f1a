"""The endpoint for Serve's commands.

serve run serving.app:app
serve run serving.app:build replicas=2 max_queued=128
serve deploy configs/serve.yaml
"""

import os
import sys
from typing import Any

from ray import serve

from serving.cluster_env import set_defaults
from serving.registry import Registry, RegistryError
from serving.settings import GateSettings, ServingSettings

_NUM_SHORT = 8
"""Room in the gate for requests that generate nothing, beside a full house."""


def build(args: ServingSettings) -> serve.Application:
    """The application out of typed arguments; an unknown one is refused by name."""
    set_defaults()  # `serve run` starts its cluster after it has imported this module
    _require_champion(args)
    from serving.deployment import application
    from serving.sizing import capacity, completed

    os.environ.setdefault("SERVING_MAX_INSIDE", str(capacity(completed(args)) + _NUM_SHORT))
    if args.cors_origins:
        os.environ.setdefault("SERVING_CORS_ORIGINS", ",".join(args.cors_origins))
    return application(args, GateSettings.from_env())


def _require_champion(args: ServingSettings) -> None:
    """On the command line a missing champion ends the command; deployed replicas wait for one."""
    try:
        found = Registry.at(args.registry_address).champion()
        message = f"{args.registry_address}: there is no champion yet. Get one with `make run`, or with"
        message += " `python -m serving.promote RUN_DIR`."
    except RegistryError as error:
        found, message = None, str(error)
    if found is None and _is_serve_run():
        sys.exit(message)


def _is_serve_run() -> bool:
    import ray

    return not ray.is_initialized()


def __getattr__(name: str) -> Any:
    """`app` is built when it is asked for: importing this module alone starts and checks nothing."""
    if name == "app":
        return build(ServingSettings())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
