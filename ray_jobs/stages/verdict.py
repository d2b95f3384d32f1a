"""The paired statistics, the decision, and the report that shows them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from ray_jobs.config import Config
from ray_jobs.judging.metrics import outline_of
from ray_jobs.records import Answer, Prompt
from ray_jobs.runs import RunFolder
from ray_jobs.search.trials import Trial, ranked_trials
from ray_jobs.stages import generate, judge
from ray_jobs.stages.base import Stage
from ray_jobs.stages.trial_table import read_trials

if TYPE_CHECKING:
    from ray_jobs.verdict.verdict import VerdictInputs

log = logging.getLogger(__name__)

BEFORE = ("prepare", "models", "tune", "export", "generate", "judge")
"""Stages whose times the report shows."""


EARLY_CLAUSES = ("gain", "worse", "min_gain", "program_checks")
"""What may end a run before all answers are judged: tests at the look's level, no guards or counts."""


def run(config: Config, folder: RunFolder) -> list[str]:
    from ray_jobs.verdict.candidates import best_report
    from ray_jobs.verdict.write import write_report

    inputs = all_inputs(config, folder)
    best, report = best_report(inputs, config.verdict, config.seed)
    outputs = write_report(lambda name, data: folder.write(f"report/{name}", data), report, inputs[best])
    log.info("verdict  %s: %s", report["decision"], report["reason"])
    return [f"report/{name}" for name in outputs]


def decided_early(config: Config, folder: RunFolder) -> bool:
    """Whether what is judged so far decides by a test at its look's level."""
    from ray_jobs.verdict.candidates import best_report

    _, report = best_report(all_inputs(config, folder), config.verdict, config.seed)
    return report["decision"] != "inconclusive" and report["clause"] in EARLY_CLAUSES


def all_inputs(config: Config, folder: RunFolder) -> "dict[str, VerdictInputs]":
    """Candidate -> its rows beside the base's, of the prompts that were looked at."""
    from ray_jobs.verdict.verdict import VerdictInputs

    look = folder.read_json("judgements/look.json")
    prompts = judge.look_order(generate.read_prompts(folder), config.seed)[: look["num_prompts"]]
    seen = {prompt.id for prompt in prompts}
    models = generate.models_of(folder)
    answers = {
        model: [row for row in generate.answers_of(folder, model) if row.id in seen] for model in models
    }
    judgements = {model: judge.judgements_of(folder, model) for model in models}
    checks = {model: program_checks(prompts, rows) for model, rows in answers.items()}
    trials = trials_of(folder)
    ranked = [trial.trial_id for trial in ranked_trials(trials, config.search.objective)]
    metrics = [outline_of(metric) for metric in config.judge.metrics]

    def of(name: str, best: str | None) -> VerdictInputs:
        both = {"base": "base", "candidate": name}
        return VerdictInputs(
            run=config.name,
            prompts=prompts,
            answers={role: answers[model] for role, model in both.items()},
            judgements={role: judgements[model] for role, model in both.items()},
            models={role: folder.read_json(f"models/{model}/manifest.json") for role, model in both.items()},
            trust=folder.read_json("judgements/trust.json"),
            trials=[asdict(trial) for trial in trials],
            data_report=folder.read_json("data/report.json"),
            timings_s={stage: state.seconds for stage, state in folder.states().items() if stage in BEFORE},
            checks={role: checks[model] for role, model in both.items()},
            best_trial=best,
            objective=config.search.objective,
            look=look["look"],
            score_ranges={metric.key: (min(metric.scores), max(metric.scores)) for metric in metrics},
        )

    best = [*ranked, *[None] * len(models)]
    return {name: of(name, best[number]) for number, name in enumerate(models[1:])}


def trials_of(folder: RunFolder) -> list[Trial]:
    """None where two given models are compared."""
    path = folder.path("tune/trials.parquet")
    return read_trials(path) if path.exists() else []


def program_checks(prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Mapping[str, bool]:
    """Prompt ID -> whether a program finds the answer right; absent where no program can tell.

    No answer counts as a wrong one.
    """
    from ray_jobs.data.checks import check_answer

    by_id = {prompt.id: prompt for prompt in prompts}
    results = {
        answer.id: check_answer(answer.source, by_id[answer.id], answer.answer or "") for answer in answers
    }
    return {row_id: right for row_id, right in results.items() if right is not None}


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
)
