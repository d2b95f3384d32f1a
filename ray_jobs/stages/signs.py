"""Signs of life: what engines have written while no block of rows is finished yet.

A block's last judgement may take minutes. Each engine process tells the ledger its totals every few seconds,
and the driver asks the ledger.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

EVERY_S = 2.0


def tell(ledger: Any, who: str, totals: Callable[[], Mapping[str, int]]) -> None:
    """Starts a thread of this process that tells the ledger its totals when they have changed."""

    def run() -> None:
        before: Mapping[str, int] = {}
        while True:
            time.sleep(EVERY_S)
            if (now := totals()) != before:
                ledger.say.remote(who, dict(now))
                before = now

    threading.Thread(target=run, name="signs-of-life", daemon=True).start()


@contextmanager
def listening(ledger: Any, heard: Callable[[Mapping[str, int]], None]) -> Iterator[None]:
    """Hands the sums of what all have told to `heard`, every few seconds, from a thread of its own."""
    import ray

    def run() -> None:
        while not over.wait(EVERY_S):
            try:
                said = ray.get(ledger.said.remote(), timeout=EVERY_S)
            except (ray.exceptions.RayError, TimeoutError):  # it is started anew, or ended
                continue
            if said:
                heard(said)

    over = threading.Event()
    thread = threading.Thread(target=run, name="listening", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
