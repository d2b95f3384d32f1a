"""Answers judged while candidates still answer, on cores that no answering engine uses.

First the base's, where there is room from the beginning; then those that all candidates have given, in
micro-batches, as long as there is room: few blocks of rows are left, or few engines are wanted. Without room
at the beginning the base's wait for the candidate's, as a judge reads both answers to a prompt one after the
other. Engines that judge hold no core while they wait for answers, and no more than are left over.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import ceil

from ray_jobs.config import Config
from ray_jobs.runs import RunFolder
from ray_jobs.stages import generate, judge
from ray_jobs.stages.ahead import beside, room_beside_answers, work_on
from ray_jobs.stages.answered import Progress, progress_of
from ray_jobs.stages.blocks import Range
from ray_jobs.stages.engine_rows import BLOCKS_IN_FLIGHT
from ray_jobs.stages.judge_rows import FirstLook, first_look, is_base_apart
from ray_jobs.stages.micro_batches import next_batch, seconds_left
from ray_jobs.tables import RowFile

log = logging.getLogger(__name__)

POLL_S = 2.0
WORTH_S = 30.0
"""Seconds of answering, still to come, for which judges are started beside it: they take some to start."""


@contextmanager
def judged_beside(config: Config, folder: RunFolder) -> Iterator[Callable[[], None]]:
    """Gives what has answers judged from then on, while the block lasts, and waits for the end of that."""
    if not config.engine.ahead or judge.judge_gpus(config):  # the room that is looked for is cores
        yield do_nothing
        return
    stream = JudgeStream(config, folder)
    with beside(stream.run, stream.end) as start:
        yield start


def do_nothing() -> None:
    pass


class JudgeStream:
    """Judges in a thread of its own, until it is told that all is answered."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        self._config = config
        self._folder = folder
        self._candidates = generate.models_of(folder)[1:]
        self._num_prompts = len(RowFile(folder.path("data/prompts.parquet")))
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._base_at_work = False
        self._look: FirstLook | None = None
        self._batch: Range | None = None

    def run(self) -> None:
        started, before = time.monotonic(), self._progress()
        self._judge_base()
        while not self._over.is_set():
            progress = self._progress()
            left_s = seconds_left(time.monotonic() - started, before.blocks_left, progress.blocks_left)
            if not (left_s >= WORTH_S and self._judge_some(progress)):
                self._over.wait(POLL_S)

    def end(self) -> None:
        """All is answered: no further micro-batch is begun. What one that is judged now leaves is judged
        beside it, by all engines, so that none waits for its end."""
        with self._lock:
            self._over.set()
            look, batch = self._look, self._batch
        if self._base_at_work:
            log.info("ahead    the candidate's answers are there; the base's scores are not yet")
        if look is not None and batch is not None and batch[1] < self._num_prompts:
            rest = (batch[1], self._num_prompts)
            work_on(partial(self._judge_rest, look, rest), threading.Event())

    def _progress(self) -> Progress:
        size = self._config.engine.rows_per_block
        return progress_of(self._folder, self._candidates, self._num_prompts, size)

    def _judge_base(self) -> None:
        """The base's answers and the known pairs; not where these were begun with the candidates'."""
        blocks = ceil(self._num_prompts / self._config.engine.rows_per_block)
        if room_beside_answers(self._config, blocks) and not judge.batches_of(self._config, self._folder):
            self._base_at_work = True
            judge.base_ahead(self._config, self._folder, self._folder)
            self._base_at_work = False

    def _judge_some(self, progress: Progress) -> bool:
        """Judges a micro-batch, if there is room and something to judge; whether it did."""
        engines = room_beside_answers(self._config, progress.blocks_left)
        engines = min(engines, self._config.engine.actors or engines)
        if engines == 0:
            return False
        self._look = self._look or first_look(self._config, self._folder)
        least = self._prompts_a_block(self._look)
        batches = judge.batches_of(self._config, self._folder)
        batch = next_batch(
            batches[-1][1] if batches else 0, progress.answered, least, least * engines * BLOCKS_IN_FLIGHT
        )
        if batch is None or not self._begin(batch):
            return False
        log.info("ahead    %d engine(s) judge while the candidate answers", engines)
        few = self._config.engine.model_copy(update={"actors": engines})
        config = self._config.model_copy(update={"engine": few})
        judge.batch_ahead(self._look, config, self._folder, batch)
        self._batch = None
        return True

    def _prompts_a_block(self, look: FirstLook) -> int:
        """Prompts that fill a block of rows to judge: one of each model, of prompts that the look takes."""
        models = len(self._candidates) + (not is_base_apart(judge.begun_by_now(self._config, self._folder)))
        rows = models * len(look.ids) / self._num_prompts
        return ceil(self._config.engine.rows_per_block / rows)

    def _begin(self, batch: Range) -> bool:
        """Takes the micro-batch, unless all is answered by now."""
        with self._lock:
            if self._over.is_set():
                return False
            judge.begin_batch(self._config, self._folder, batch)
            self._batch = batch
        return True

    def _judge_rest(self, look: FirstLook, rest: Range) -> None:
        judge.begin_batch(self._config, self._folder, rest)
        judge.batch_ahead(look, self._config, self._folder, rest)
