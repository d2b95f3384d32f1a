"""Judges answers by one metric: every item gets a score that the rubric offers, or null and the reason.

Answers that are empty are judged like any other: a rubric may well ask for silence, so no score is presumed.
The attack suite measures what a judge gives them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ray_jobs.errors import DataError
from ray_jobs.judging.backend import Backend, Call, Completion
from ray_jobs.judging.cache import JudgementCache, judgement_key
from ray_jobs.judging.expected import expected_score
from ray_jobs.judging.inputs import InputMaker, JudgeItem, prompt_text
from ray_jobs.judging.metrics import load_metric, outline_of
from ray_jobs.judging.parsing import PASSING_FAILURES, Failure, Verdict, parse_verdict
from ray_jobs.judging.settings import JudgeSettings
from ray_jobs.records import Judgement, row_seed, text_sha256

FORMAT_VERSION = 2
"""Raised when the same settings come to mean another way of asking or reading: part of every cache key."""


@dataclass(frozen=True)
class _Task:
    """A distinct judgement to make, and the items that get it."""

    key: str
    prompt: str
    items: list[JudgeItem]


class Judge:
    """One judge and one metric (a preset's name or a YAML file's path). `seed`: the run's."""

    def __init__(
        self,
        backend: Backend,
        settings: JudgeSettings,
        metric: str,
        *,
        seed: int = 0,
        cache: JudgementCache | None = None,
    ) -> None:
        self.metric = outline_of(metric)
        self._backend = backend
        self._settings = settings
        self._flow_metric = load_metric(metric)
        self._eval_input = InputMaker(self.metric, settings.inputs, control_tokens=not backend.tokenizes)
        self._seed = seed
        self._cache = cache

    def judge(
        self, items: Sequence[JudgeItem], on_done: Callable[[Judgement], None] | None = None
    ) -> list[Judgement]:
        """A judgement of each item, in their order; `on_done` gets each as it is settled, cached ones first.

        All items go to the backend together. Raises DataError for a repeated id or an input that a row lacks.
        """
        tasks = self._tasks(items)
        done: dict[str, Judgement] = {}

        def settle(task: _Task, judgement: Judgement) -> None:
            for item in task.items:
                done[item.id] = replace(judgement, id=item.id, answer_sha256=text_sha256(item.answer))
                if on_done is not None:
                    on_done(done[item.id])

        cached = self._cache.get(tasks) if self._cache is not None else {}
        for key, judgement in cached.items():
            settle(tasks[key], replace(judgement, seconds=0.0))
        open_tasks = {key: task for key, task in tasks.items() if key not in cached}
        for attempt in range(1 + self._settings.retries):
            open_tasks = self._attempt(open_tasks, attempt, settle)
        assert not open_tasks
        return [done[item.id] for item in items]

    def prompt(self, item: JudgeItem) -> str:
        """The user prompt that the judge reads for an item."""
        return prompt_text(self._flow_metric, self._eval_input(item), self._settings.prompt_order)

    def check_context(self, items: Sequence[JudgeItem], num_answer_tokens: int = 0) -> None:
        """Raises DataError that names the rows whose prompts leave no room in the judge's context.

        Before answers exist, give items with empty answers and the tokens that an answer may have.
        """
        room = self._settings.context_tokens - self._settings.max_verdict_tokens - num_answer_tokens
        counts = {item.id: self._backend.num_prompt_tokens(self.prompt(item)) for item in items}
        too_long = {row: count for row, count in counts.items() if count is not None and count > room}
        if too_long:
            rows = ", ".join(list(too_long)[:5]) + (", …" if len(too_long) > 5 else "")
            raise DataError(
                f"judge.context_tokens: {self._settings.context_tokens} leave {room} for the prompt of metric"
                f" {self.metric.key}; {len(too_long)} of {len(items)} rows take more,"
                f" up to {max(too_long.values())}: {rows}"
            )

    def _tasks(self, items: Sequence[JudgeItem]) -> dict[str, _Task]:
        tasks: dict[str, _Task] = {}
        seen: set[str] = set()
        for item in items:
            if item.id in seen:
                raise DataError(f"row {item.id}: the id stands twice")
            seen.add(item.id)
            prompt = self.prompt(item)
            key = self._key(prompt)
            tasks.setdefault(key, _Task(key, prompt, [])).items.append(item)
        return tasks

    def _key(self, prompt: str) -> str:
        """Of everything that decides the judgement; the prompt text holds metric, inputs and answer."""
        settings, backend = self._settings, self._backend
        judge = (backend.sha256, backend.fingerprint)
        lengths = (settings.max_verdict_tokens, settings.context_tokens, settings.long_feedback)
        asked = (settings.feedback, *lengths, settings.retries)
        sampled = (settings.temperature, settings.retry_temperature, self._seed)
        return judgement_key(FORMAT_VERSION, *judge, self.metric.key, *asked, *sampled, prompt)

    def _attempt(
        self, tasks: Mapping[str, _Task], attempt: int, settle: Callable[[_Task, Judgement], None]
    ) -> dict[str, _Task]:
        """Asks once for each task, settles what succeeds or has no further try, and returns the rest."""
        failed: dict[str, _Task] = {}
        is_last = attempt == self._settings.retries

        def read(completion: Completion) -> None:
            task = tasks[completion.id]
            judgement = self._judgement(task, completion)
            if judgement.failure is not None and judgement.failure != "too_long_prompt" and not is_last:
                failed[task.key] = task
                return
            if self._cache is not None and judgement.failure not in PASSING_FAILURES:
                self._cache.put(task.key, judgement)
            settle(task, judgement)

        if tasks:
            calls = [self._call(task, attempt) for task in tasks.values()]
            self._backend.complete(calls, self.metric.scores, read)
        return failed

    def _call(self, task: _Task, attempt: int) -> Call:
        temperature = self._settings.temperature
        if attempt > 0:
            temperature = max(temperature, self._settings.retry_temperature)
        return Call(task.key, task.prompt, row_seed(self._seed + attempt, task.key), temperature)

    def _judgement(self, task: _Task, completion: Completion) -> Judgement:
        verdict = self._verdict(completion)
        expected = None
        if verdict.score_start is not None:
            tail = completion.text[verdict.score_start :]
            expected = expected_score(completion.tokens, tail, self.metric.scores)
        item = task.items[0]
        return Judgement(
            id=item.id,
            metric=self.metric.key,
            score=verdict.score,
            expected_score=expected,
            feedback=verdict.feedback or completion.error or None,
            failure=verdict.failure,
            answer_sha256=text_sha256(item.answer),
            judge_sha256=self._backend.sha256,
            seconds=completion.seconds,
        )

    def _verdict(self, completion: Completion) -> Verdict:
        if completion.finish in ("timeout", "too_long_prompt", "error"):
            failure: Failure = completion.finish
            return Verdict(None, None, failure)
        return parse_verdict(completion.text, self.metric.scores, cut=completion.finish == "length")
