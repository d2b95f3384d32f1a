"""The paired statistics, the decision, and the report that shows them."""

import logging
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs.config import Config
from ray_jobs.errors import StageFailed
from ray_jobs.judging.metrics import outline_of
from ray_jobs.records import prompt_from_row, row_seed
from ray_jobs.runs import RunFolder
from ray_jobs.search.trials import Trial, ranked_trials
from ray_jobs.stages import generate, judge
from ray_jobs.stages.base import Stage
from ray_jobs.stages.trial_table import read_trials
from ray_jobs.tables import iter_tables

if TYPE_CHECKING:
    from ray_jobs.verdict.facts import AnswerFacts, Checks, PromptFacts, ScoreRow, Scores, Texts
    from ray_jobs.verdict.ids import Ids
    from ray_jobs.verdict.shares import Flags
    from ray_jobs.verdict.verdict import VerdictInputs

log = logging.getLogger(__name__)

BEFORE = ("prepare", "models", "tune", "export", "generate", "judge")
"""Stages whose times the report shows."""


EARLY_CLAUSES = ("guard", "gain", "worse", "program_checks")
"""What may end a run before all answers are judged: guards, which see all answers at every look, and tests
at the look's level. That a gain is below the wanted one is not among them: few rows say little of rare ones.
"""


def run(config: Config, folder: RunFolder) -> list[str]:
    from ray_jobs.verdict.candidates import best_report
    from ray_jobs.verdict.write import write_report

    inputs = all_inputs(config, folder)
    best, report = best_report(inputs, config.verdict, config.seed)
    outputs = write_report(lambda name, data: folder.write(f"report/{name}", data), report, inputs[best])
    log.info("verdict  %s: %s", report["decision"], report["reason"])
    return [f"report/{name}" for name in outputs]


def decided_early(config: Config, folder: RunFolder) -> bool:
    """Whether what is judged so far decides, and more of it could not say otherwise."""
    from ray_jobs.verdict.candidates import best_report

    settings = config.verdict.model_copy(update={"num_examples": 0})
    try:
        _, report = best_report(all_inputs(config, folder), settings, config.seed)
    except StageFailed:  # not one of a look's few rows may have a score
        return False
    if report["decision"] == "promote":
        return report["clause"] in EARLY_CLAUSES
    rows = report.get("candidates", [report])
    return all(row["decision"] == "keep_base" and row["clause"] in EARLY_CLAUSES for row in rows)


def all_inputs(config: Config, folder: RunFolder) -> "dict[str, VerdictInputs]":
    """Candidate -> its rows beside the base's."""
    from ray_jobs.verdict.verdict import VerdictInputs

    look = folder.read_json("judgements/look.json")
    models = generate.models_of(folder)
    rows = read_facts(folder, models)
    judged = judged_prompts(rows.prompts.ids, look["num_prompts"], config.seed)
    trials = trials_of(folder)
    ranked = [trial.trial_id for trial in ranked_trials(trials, config.search.objective)]
    metrics = [outline_of(metric) for metric in config.judge.metrics]

    def of(name: str, best: str | None) -> VerdictInputs:
        both = {"base": "base", "candidate": name}
        return VerdictInputs(
            run=config.name,
            prompts=rows.prompts,
            answers={role: rows.answers[model] for role, model in both.items()},
            judgements={role: rows.scores[model] for role, model in both.items()},
            models={role: folder.read_json(f"models/{model}/manifest.json") for role, model in both.items()},
            trust=folder.read_json("judgements/trust.json"),
            trials=[asdict(trial) for trial in trials],
            data_report=folder.read_json("data/report.json"),
            timings_s={stage: state.seconds for stage, state in folder.states().items() if stage in BEFORE},
            checks={role: rows.checks[model] for role, model in both.items()},
            texts=partial(fetch_texts, folder, both),
            best_trial=best,
            objective=config.search.objective,
            look=look["look"],
            judged=judged,
            score_ranges={metric.key: (min(metric.scores), max(metric.scores)) for metric in metrics},
        )

    best = [*ranked, *[None] * len(models)]
    return {name: of(name, best[number]) for number, name in enumerate(models[1:])}


def trials_of(folder: RunFolder) -> list[Trial]:
    """None where two given models are compared."""
    path = folder.path("tune/trials.parquet")
    return read_trials(path) if path.exists() else []


def judged_prompts(ids: "Ids", number: int, seed: int) -> "Flags | None":
    """Which prompts are among the first `number` of `judge.look_order`; null: all are."""
    import numpy as np

    if number >= len(ids):
        return None
    seeds_B = np.fromiter((row_seed(seed, row_id) for row_id in ids), dtype=np.int64, count=len(ids))
    rising_B = ids.rising()
    order_B = rising_B[np.argsort(seeds_B[rising_B], kind="stable")]
    judged_B = np.zeros(len(ids), dtype=np.bool_)
    judged_B[order_B[:number]] = True
    return judged_B


@dataclass(frozen=True)
class RunFacts:
    """What the verdict keeps of a run's rows; mappings are by model."""

    prompts: "PromptFacts"
    answers: "dict[str, AnswerFacts]"
    scores: "dict[str, dict[str, Scores]]"
    """By metric, too."""
    checks: "dict[str, Checks]"
    """No answer counts as a wrong one."""


def read_facts(folder: RunFolder, models: Sequence[str]) -> RunFacts:
    """Reads every file once, of which few rows are in memory at a time.

    Raises RunConflict where a file cannot be read, or has answers to other prompts.
    """
    import numpy as np

    from ray_jobs.data.checks import check_answer
    from ray_jobs.verdict.facts import UNCHECKED, AnswerBuilder, PromptBuilder, column, scores_by_metric

    prompts = PromptBuilder()
    answers = {model: AnswerBuilder() for model in models}
    checks = {model: array("b") for model in models}
    for prompt, rows in generate.in_step(folder, models):
        prompts.add(prompt)
        for model, row in zip(models, rows, strict=True):
            answers[model].add(row)
            right = check_answer(row.source, prompt, row.answer or "")
            checks[model].append(UNCHECKED if right is None else right)
    facts = prompts.build()
    return RunFacts(
        prompts=facts,
        answers={model: builder.build(facts.ids) for model, builder in answers.items()},
        scores={model: scores_by_metric(score_rows(folder, model), facts.ids) for model in models},
        checks={model: column(values, np.int8) for model, values in checks.items()},
    )


def score_rows(folder: RunFolder, model: str) -> "Iterator[ScoreRow]":
    """The columns of a model's judgements that the verdict keeps; feedback is by far the largest one."""
    from ray_jobs.verdict.facts import SCORE_COLUMNS

    for table in iter_tables(folder.path(judge.JUDGEMENTS.format(subject=model))):
        yield from zip(*(table.column(name).to_pylist() for name in SCORE_COLUMNS), strict=True)


def fetch_texts(
    folder: RunFolder, models: Mapping[str, str], ids: Collection[str], metric: str
) -> "dict[str, Texts]":
    """The texts of some prompts, for the report. `models`: role -> model.

    Raises RunConflict where a file cannot be read.
    """
    from ray_jobs.verdict.facts import Texts

    answers, feedback = {}, {}
    for role, model in models.items():
        rows = rows_with(folder.path(generate.ANSWERS.format(model=model)), ids)
        answers[role] = {row["id"]: row["answer"] for row in rows}
        rows = rows_with(folder.path(judge.JUDGEMENTS.format(subject=model)), ids)
        feedback[role] = {row["id"]: row["feedback"] for row in rows if row["metric"] == metric}
    return {
        prompt.id: Texts(
            prompt,
            {role: answers[role][prompt.id] for role in models},
            {role: feedback[role].get(prompt.id) for role in models},
        )
        for prompt in map(prompt_from_row, rows_with(folder.path("data/prompts.parquet"), ids))
    }


def rows_with(path: Path, ids: Collection[str]) -> Iterator[dict[str, Any]]:
    """The rows of a file that have one of these IDs."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array(list(ids), pa.string())
    for table in iter_tables(path):
        yield from table.filter(pc.is_in(table.column("id"), value_set=wanted)).to_pylist()


def files_of_models(folder: RunFolder) -> tuple[str, ...]:
    trials = ("tune/trials.parquet",) if folder.path("tune/trials.parquet").exists() else ()
    manifests = (f"models/{model}/manifest.json" for model in generate.models_of(folder))
    return (*trials, *manifests, *generate.answer_files(folder), *judge.judgement_files(folder))


STAGE = Stage(
    name="verdict",
    settings=("name", "seed", "verdict", "search.objective"),
    needs=(
        "data/prompts.parquet",
        "data/report.json",
        "judgements/trust.json",
        "judgements/look.json",
    ),
    folders=("report",),
    run=run,
    more_needs=files_of_models,
    resumes=False,
)
