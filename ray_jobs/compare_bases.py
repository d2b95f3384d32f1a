"""Several bases, each tuned and judged on the same prompts, in one ranking.

    python -m ray_jobs.compare_bases configs/seed-comparison.yaml [--check] [--set FIELD=VALUE] [--json]

Each base is a run of its own (`<name>-<base>`), done or taken up as the pipeline does it, without promoting
anything. The ranking is `<storage>/<name>/ranking.md` and `ranking.json`. A base that fails is listed as
failed and does not stop the others; the exit code then is 1.
"""

import argparse
import contextlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_jobs.cli.results import Answer, planned, tell
from ray_jobs.command import STAGES, by_library, end, end_by_library, run
from ray_jobs.config import Config
from ray_jobs.errors import StageFailed, UserError
from ray_jobs.logs import configure
from ray_jobs.ranking.settings import load_comparison
from ray_jobs.runs import RunFolder, open_run

log = logging.getLogger(__name__)

MODELS = ("base", "candidate")


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    return tell(lambda: compared(options), as_json=options.json)


def compared(options: argparse.Namespace) -> Answer:
    configure(options.verbose)
    try:
        name, configs = load_comparison(options.comparison, options.changes)
        if options.check:
            return plan(name, configs)
        with contextlib.redirect_stdout(sys.stderr):
            failed = run_all(configs)
        result, page = ranked(name, configs, failed)
    except (UserError, StageFailed) as error:
        return Answer(end(str(error), error.exit_code))
    except KeyboardInterrupt:
        return Answer(end("stopped; the same command goes on from here", 130))
    except Exception as error:
        return Answer(end_by_library(error))
    return Answer(1 if failed else 0, page, result)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="orpo compare", description="Tune several bases and rank them.")
    result.add_argument("comparison", type=Path, help="YAML file such as configs/seed-comparison.yaml")
    result.add_argument("--check", action="store_true", help="check the file and print the plan of each run")
    result.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    result.add_argument(
        "--set", action="append", default=[], dest="changes", metavar="FIELD=VALUE", help="for every base"
    )
    result.add_argument("--verbose", action="store_true", help="log more")
    return result


def plan(name: str, configs: dict[str, Config]) -> Answer:
    """The plan of each base's run."""
    from ray_jobs.plan import plan_lines

    plans = {base: "\n".join(plan_lines(config)) for base, config in configs.items()}
    text = "".join(f"== {base}\n{lines}\n\n" for base, lines in plans.items())
    runs = {base: planned(configs[base], lines) for base, lines in plans.items()}
    return Answer(0, text, {"name": name, "bases": runs})


def run_all(configs: dict[str, Config]) -> dict[str, str]:
    """Runs every base up to its verdict; base -> why it failed, for those that did."""
    failed = {}
    for number, (base, config) in enumerate(configs.items(), start=1):
        log.info("compare  %s, base %d of %d", base, number, len(configs))
        try:
            run(config, STAGES[:-1], ())
        except (UserError, StageFailed) as error:
            failed[base] = str(error).splitlines()[0]
        except Exception as error:
            failed[base] = by_library(error)[0].splitlines()[0]
        if base in failed:
            log.error("compare  %s failed: %s", base, failed[base])
    return failed


def ranked(name: str, configs: dict[str, Config], failed: dict[str, str]) -> tuple[dict[str, Any], str]:
    """The ranking as data and as a page, both kept. Raises StageFailed when fewer than two bases ran."""
    from ray_jobs.judging.metrics import outline_of
    from ray_jobs.ranking.ranking import common_prompts, rank, table
    from ray_jobs.ranking.standing import leading_metric, why_undecided
    from ray_jobs.verdict.verdict import trust_in

    whole = {base: config for base, config in configs.items() if base not in failed}
    if len(whole) < 2:
        raise StageFailed(
            "comparison: fewer than two bases ran: "
            + "; ".join(f"{base}: {reason}" for base, reason in failed.items())
        )
    config = next(iter(whole.values()))
    rule = config.verdict
    trusts = {base: trust_in_run(one) for base, one in whole.items()}
    metric = leading_metric([outline_of(each).key for each in config.judge.metrics], rule, trusts)
    entries = [entry for base, one in whole.items() for entry in entries_of(base, one, metric)]
    undecided = why_undecided(metric, entries, rule, trusts)
    places = rank(
        entries,
        level=rule.level,
        num_resamples=rule.num_resamples,
        seed=config.seed,
        clusters=clusters_of(config),
        decides=undecided is None,
    )
    about: dict[str, Any] = {
        "metric": metric,
        "num_prompts": len(common_prompts(entries)),
        "level": rule.level,
        "undecided": undecided,
    }
    page = table(places, failed, **about)
    result = {
        "name": name,
        **about,
        "judge_trust": {base: dict(trust_in(trust, metric)) for base, trust in trusts.items()},
        "ranking": [place.as_json() for place in places],
        "failed": failed,
        "runs": {base: one.name for base, one in whole.items()},
    }
    folder = open_run(config.storage, name)
    folder.write_json("ranking.json", result)
    folder.write("ranking.md", page.encode())
    return result, page


def trust_in_run(config: Config) -> dict[str, Any]:
    """How far the judge of a finished run is to be trusted, by metric."""
    found: dict[str, Any] = open_run(config.storage, config.name).read_json("judgements/trust.json")
    return found


def entries_of(base: str, config: Config, metric: str) -> list[Any]:
    """A run's base and candidate, with their scores by the metric."""
    folder = open_run(config.storage, config.name)
    return [entry_of(base, model, folder, metric) for model in MODELS]


def entry_of(base: str, model: str, folder: RunFolder, metric: str) -> Any:
    from ray_jobs.ranking.ranking import Entry, scores_of
    from ray_jobs.stages.generate import iter_answers
    from ray_jobs.stages.judge import iter_judgements

    tokens = [row.num_answer_tokens for row in iter_answers(folder, model)]
    judged = [row for row in iter_judgements(folder, model) if row.metric == metric]
    return Entry(
        base,
        model,
        scores_of(judged, metric),
        len(judged),
        sum(tokens) / max(1, len(tokens)),
        cost_of(folder, model),
    )


def clusters_of(config: Config) -> dict[str, int] | None:
    """Prompt ID -> cluster, by `verdict.cluster_by`; None where prompts are independent."""
    from ray_jobs.stages.generate import iter_prompts
    from ray_jobs.verdict.facts import PromptFacts
    from ray_jobs.verdict.inputs import cluster_labels

    if config.verdict.cluster_by == "none":
        return None
    prompts = PromptFacts.of(iter_prompts(open_run(config.storage, config.name)))
    labels = cluster_labels(prompts, config.verdict.cluster_by)
    assert labels is not None
    return dict(zip(prompts.ids, labels.tolist(), strict=True))


def cost_of(folder: RunFolder, model: str) -> Any:
    """What a model of a finished run took to tune, keep and run."""
    from ray_jobs.ranking.ranking import Cost
    from ray_jobs.stages import spent

    took = spent.read(folder, model)
    return Cost(
        file_bytes=file_bytes(folder, model),
        memory_bytes=took.memory_bytes if took else None,
        answer_tokens_per_s=took.tokens_per_s if took else None,
        answer_tokens_per_s_and_core=took.tokens_per_s_and_core if took else None,
        tuning_s=folder.states()["tune"].seconds if model == "candidate" else None,
    )


def file_bytes(folder: RunFolder, model: str) -> int:
    return int(folder.read_json(f"models/{model}/manifest.json")["bytes"])


if __name__ == "__main__":
    sys.exit(main())
