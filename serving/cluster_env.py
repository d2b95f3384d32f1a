"""What Serve reads from the environment when a cluster starts, as this endpoint wants it.

`export $(python -m serving.cluster_env)` before `ray start`.
"""

from __future__ import annotations

import os
import sys

CLUSTER_ENV = {
    # Keys, sizes, times and headers are checked in Serve's proxies.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.http.gate:proxy_middlewares",
    # Tokens go to ingress and proxy by gRPC, and a process has one event loop: a third of the processor time
    # that objects of actors, spread over threads, take.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    # Serve's controller looks ten times a second whether something is to be done, which takes 3 % of a core.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # Ray's workers run at nice 15: a prompt on two cores took 38 s in place of 2 beside two busy processes.
    "RAY_worker_niceness": "0",
}
"""`serve run serving.app:app` and `orpo serve` set them by themselves."""


def set_defaults() -> None:
    """For the cluster that this process starts; what is set already stays."""
    for name, value in CLUSTER_ENV.items():
        os.environ.setdefault(name, value)


if __name__ == "__main__":
    sys.stdout.write("".join(f"{name}={value}\n" for name, value in CLUSTER_ENV.items()))
