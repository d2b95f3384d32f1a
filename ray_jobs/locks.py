"""One run, one owner."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_jobs.errors import RunBusy
from ray_jobs.runs import now


@contextmanager
def owned(root: Path) -> Iterator[None]:
    """Holds the run folder for this process; the kernel lets go when the process dies.

    Raises RunBusy, naming the owner, when another process holds it. Where the platform has no file
    locks the folder is not guarded.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (root / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise RunBusy(
                f"{root}: another process works on this run: {file.read().strip() or 'unknown'}"
            ) from error
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": now()}))
        file.flush()
        yield
