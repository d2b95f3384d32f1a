"""Work that need not wait for its stage, done beside another one, on cores that this one leaves idle.

Trials train on GPUs and engines run on CPUs, which would wait for each other: while trials train, engines
answer as the base and judge these answers and the known pairs. While a candidate answers, engines judge: see
`judge_stream`. A thread of the driver has this done. It keeps finished rows only: the stages whose work it is
take them up, do what is missing, and fail where it failed.
"""

import ctypes
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from ray_jobs.config import Config
from ray_jobs.logs import duration
from ray_jobs.runs import RunFolder
from ray_jobs.stages import cluster, export, generate, judge
from ray_jobs.stages.begun import ahead_of
from ray_jobs.stages.tune_search import most_at_once

log = logging.getLogger(__name__)

STOP_S = 10.0
DRIVER_CPUS = 1
"""Left on a machine on which the trials run too: for the driver, and what drives the trials."""


@contextmanager
def base_ahead(config: Config, folder: RunFolder) -> Iterator[None]:
    """Has the base's rows made as long as the block lasts, and waits for their end; not after an error.

    `config`: with the GPUs of a worker as a number.
    """
    engines = room(config) if config.engine.ahead else 0
    if engines == 0:
        yield
        return
    log.info("ahead    %d engine(s) answer as the base while the trials train", engines)
    config = config.model_copy(update={"engine": config.engine.model_copy(update={"actors": engines})})
    work = partial(make_base, config, folder)
    told = partial(log.info, "ahead    the trials are done; the base's rows are not yet")
    with beside(work, told) as start:
        start()
        yield


@contextmanager
def beside(work: Callable[[], None], at_end: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Gives what starts a thread that does the work, and waits for its end; not after an error.

    `at_end`: is called where the work takes longer than the block, before its end is waited for.
    """
    left = threading.Event()
    thread = threading.Thread(target=work_on, args=(work, left), name="ahead", daemon=True)
    lock = threading.Lock()

    def start() -> None:
        with lock:
            if thread.ident is None:
                thread.start()

    try:
        yield start
        if thread.is_alive():
            at_end()
        if thread.ident is not None:
            thread.join()
    except BaseException:
        left.set()
        stop(thread)
        raise


def stop(thread: threading.Thread) -> None:
    """Has the thread, if it was started, end as Ctrl-C would end the main one, and waits, but not for long.

    A process that shuts Ray down (2.60) under a thread that still waits for it may crash on its way out.
    """
    if thread.ident is None:
        return
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
    thread.join(STOP_S)


def room(config: Config) -> int:
    """Engines for which there are cores that no trial needs.

    Known of nodes that are kept for engines, and of one machine on which everything runs. Elsewhere engines
    might settle on the cores beside a GPU and keep its trial waiting.
    """
    workers = config.workers
    assert not isinstance(workers.gpus_per_worker, str)
    if workers.gpus_per_worker == 0:
        return 0
    kinds = cluster.nodes_there()
    if cluster.engine_resources(1):
        cores = float(cluster.engine_cpus())
    elif len(kinds) == 1 and not cluster.nodes_to_come():
        of_trials = most_at_once(config) * workers.per_trial * workers.cpus_per_worker
        cores = kinds[0].cpus - of_trials - DRIVER_CPUS
    else:
        return 0
    there = max(0, int(cores // config.engine.settings.cores))
    return min(there, config.engine.actors or there)


def room_beside_answers(config: Config, blocks: int) -> int:
    """Engines for which there are cores while others answer so many blocks of rows: there are few of these,
    or `engine.actors` wants few engines a stage."""
    engine = config.engine
    there = cluster.engine_cpus() // engine.settings.cores
    return max(0, there - min(engine.actors or there, blocks))


def work_on(work: Callable[[], None], left: threading.Event) -> None:
    """All that can be done; `left`: nobody waits for it any more, and Ray ends under it."""
    try:
        work()
    except SystemExit:
        log.debug("ahead    stopped")
    except Exception as error:
        # Nothing is lost: the stage will meet the same, where it is told and counts.
        level = logging.DEBUG if left.is_set() else logging.WARNING
        log.log(level, "ahead    stopped, its stage will do it: %s", " ".join(str(error).split())[:500])
        log.debug("ahead", exc_info=error)


def make_base(config: Config, folder: RunFolder) -> None:
    """The base's model, its answers, their scores, and scores of known pairs, in the folder of work ahead.

    A judge on a GPU waits for its stage: trials have the GPUs.
    """
    started = time.monotonic()
    export.base_ahead(config, folder)
    generate.base_ahead(config, folder)
    if not judge.judge_gpus(config):
        judge.base_ahead(config, folder, ahead_of(folder))
    log.info("ahead    done in %s", duration(time.monotonic() - started))
