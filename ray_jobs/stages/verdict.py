"""The paired statistics, the decision, and the report that shows them."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

from ray_jobs.config import Config
from ray_jobs.errors import StageFailed
from ray_jobs.judging.metrics import outline_of
from ray_jobs.runs import RunFolder
from ray_jobs.search.trials import Trial, ranked_trials
from ray_jobs.stages import generate, judge
from ray_jobs.stages.base import Stage
from ray_jobs.stages.trial_table import read_trials

if TYPE_CHECKING:
    from ray_jobs.verdict.facts import AnswerFacts, PromptFacts, Score, Texts
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
    order = judge.look_order((prompt.id for prompt in generate.iter_prompts(folder)), config.seed)
    models = generate.models_of(folder)
    judged = set(order[: look["num_prompts"]]) if look["num_prompts"] < len(order) else None
    rows = read_facts(folder, models)
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


@dataclass(frozen=True)
class RunFacts:
    """What the verdict keeps of a run's rows; mappings are by model."""

    prompts: "list[PromptFacts]"
    answers: "dict[str, list[AnswerFacts]]"
    scores: "dict[str, list[Score]]"
    checks: dict[str, dict[str, bool]]
    """Prompt ID -> whether a program finds the answer right; absent where no program can tell. No answer
    counts as a wrong one."""


def read_facts(folder: RunFolder, models: Sequence[str]) -> RunFacts:
    """Reads every file once, of which few rows are in memory at a time."""
    from ray_jobs.data.checks import check_answer
    from ray_jobs.verdict.facts import AnswerFacts, PromptFacts, Score

    facts = RunFacts([], {model: [] for model in models}, {}, {model: {} for model in models})
    for prompt, answers in generate.in_step(folder, models):
        facts.prompts.append(PromptFacts.of(prompt))
        for model, answer in zip(models, answers, strict=True):
            row = AnswerFacts.of(answer)
            facts.answers[model].append(row)
            right = check_answer(answer.source, prompt, answer.answer or "")
            if right is not None:
                facts.checks[model][row.id] = right
    for model in models:
        facts.scores[model] = [Score.of(row) for row in judge.iter_judgements(folder, model)]
    return facts


def fetch_texts(
    folder: RunFolder, models: Mapping[str, str], ids: Collection[str], metric: str
) -> "dict[str, Texts]":
    """The texts of some prompts, for the report. `models`: role -> model."""
    from ray_jobs.verdict.facts import Texts

    feedback = {
        role: {
            row.id: row.feedback
            for row in judge.iter_judgements(folder, model)
            if row.metric == metric and row.id in ids
        }
        for role, model in models.items()
    }
    return {
        prompt.id: Texts(
            prompt,
            {role: answer.answer for role, answer in zip(models, answers, strict=True)},
            {role: feedback[role].get(prompt.id) for role in models},
        )
        for prompt, answers in generate.in_step(folder, tuple(models.values()))
        if prompt.id in ids
    }


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
