"""The paired statistics, the decision, and the report that shows them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from ray_jobs.config import Config
from ray_jobs.judging.metrics import outline_of
from ray_jobs.records import Answer, Prompt
from ray_jobs.runs import RunFolder
from ray_jobs.search.trials import best_trial
from ray_jobs.stages import generate, judge
from ray_jobs.stages.base import Stage
from ray_jobs.stages.trial_table import read_trials

log = logging.getLogger(__name__)


def run(config: Config, folder: RunFolder) -> list[str]:
    from ray_jobs.verdict.verdict import VerdictInputs, make_report
    from ray_jobs.verdict.write import write_report

    metrics = [outline_of(metric) for metric in config.judge.metrics]
    prompts = generate.read_prompts(folder)
    answers = {model: generate.answers_of(folder, model) for model in generate.MODELS}
    trials = read_trials(folder.path("tune/trials.parquet"))
    best = best_trial(trials, config.search.objective)
    inputs = VerdictInputs(
        run=config.name,
        prompts=prompts,
        answers=answers,
        judgements={model: judge.judgements_of(folder, model) for model in generate.MODELS},
        models={model: folder.read_json(f"models/{model}/manifest.json") for model in generate.MODELS},
        trust=folder.read_json("judgements/trust.json"),
        trials=[asdict(trial) for trial in trials],
        data_report=folder.read_json("data/report.json"),
        timings_s={name: state.seconds for name, state in folder.states().items() if name != "verdict"},
        checks={model: program_checks(prompts, rows) for model, rows in answers.items()},
        best_trial=best.trial_id if best else None,
        score_ranges={metric.key: (min(metric.scores), max(metric.scores)) for metric in metrics},
    )
    report = make_report(inputs, config.verdict, config.seed)
    outputs = write_report(lambda name, data: folder.write(f"report/{name}", data), report, inputs)
    log.info("verdict  %s: %s", report["decision"], report["reason"])
    return [f"report/{name}" for name in outputs]


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


STAGE = Stage(
    name="verdict",
    settings=("name", "seed", "verdict", "search.objective"),
    needs=(
        "data/prompts.parquet",
        "data/report.json",
        "tune/trials.parquet",
        *(f"models/{model}/manifest.json" for model in generate.MODELS),
        *(generate.ANSWERS.format(model=model) for model in generate.MODELS),
        *(judge.JUDGEMENTS.format(subject=subject) for subject in judge.SUBJECTS),
        "judgements/trust.json",
    ),
    folders=("report",),
    run=run,
)
