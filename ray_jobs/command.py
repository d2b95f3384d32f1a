"""The command line that every stage shares: arguments, exit codes, and the order of stages."""

import argparse
import logging
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ray_jobs.config import Config, load_config
from ray_jobs.errors import ConfigError, StageFailed, UserError
from ray_jobs.logs import configure, duration
from ray_jobs.runs import RunFolder, open_run, refuse_fleeting
from ray_jobs.summary import summary_lines
from serving.storage.remote import Remote, StorageError, absolute, is_uri

if TYPE_CHECKING:
    from ray_jobs.stages.base import Stage

log = logging.getLogger(__name__)

STAGES = ("prepare", "tune", "export", "generate", "judge", "verdict", "promote")


def main(stage: str | None = None, argv: Sequence[str] | None = None) -> int:
    """Runs one stage (None: all of them) and returns the exit code; see ray_jobs.errors for the codes."""
    options = parser(stage).parse_args(argv)
    configure(options.verbose)
    names = STAGES if stage is None else ("prepare", stage)
    try:
        refuse_undone(names, options.force, options.config)
        config = load_config(options.config, options.changes)
        check_stores(config)
        if options.check:
            from ray_jobs.plan import plan_lines

            sys.stdout.write("\n".join(plan_lines(config)) + "\n")
            return 0
        run(config, names, set(options.force))
    except UserError as error:
        return end(str(error), error.exit_code)
    except StageFailed as error:
        return end(str(error), error.exit_code)
    except KeyboardInterrupt:
        return end("stopped; the same command goes on from here", 130)
    except Exception as error:
        return end_by_library(error)
    return 0


def refuse_undone(names: Sequence[str], forced: Sequence[str], config: Path) -> None:
    """Raises ConfigError for a stage to redo where the command would not redo all that goes with it.

    `names`: what the command does, in order. From the first forced stage on everything is thrown away.
    """
    last = STAGES.index(names[-1])
    for stage in forced:
        undone = [each for each in STAGES[STAGES.index(stage) : last + 1] if each not in names]
        if undone or STAGES.index(stage) > last:
            redoes = " and ".join(names)
            raise ConfigError(
                f"--force {stage}: this command does {redoes} alone; redo it and what stands on it with "
                f"`orpo run {config} --force {stage}`"
            )


def check_stores(config: Config) -> None:
    """Raises ConfigError for a place that cannot be used or would vanish, before anything is started."""
    for field, address in (("storage", config.storage), ("registry", config.registry)):
        refuse_fleeting(field, address)
        if is_uri(address):
            try:
                Remote(absolute(address)).check()
            except StorageError as error:
                raise ConfigError(f"{field}: {error}") from error


def end(message: str, code: int) -> int:
    for line in message.splitlines():
        sys.stderr.write(f"error: {line}\n")
    return code


def end_by_library(error: Exception) -> int:
    """The exit code of what a library could not do, said in one line. Raises as `by_library`."""
    return end(*by_library(error))


def by_library(error: Exception) -> tuple[str, int]:
    """What the engine refuses, or what failed in the store or on the cluster, in one line; its exit code.

    Anything else is a bug: it is raised and keeps its traceback.
    """
    from serving.engine.errors import EngineError

    if isinstance(error, EngineError):
        return str(error), 2
    if isinstance(error, StorageError):
        return f"{error}; the same command goes on from here", 1
    if type(error).__module__.partition(".")[0] != "ray":
        raise error
    log.debug("failed on the cluster", exc_info=error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__, 1


def parser(stage: str | None) -> argparse.ArgumentParser:
    what = "every stage of a run" if stage is None else f"stage {stage!r} of a run"
    module = stage or "pipeline"
    result = argparse.ArgumentParser(
        prog=f"python -m ray_jobs.{module}", description=f"Runs {what}; what is done is skipped."
    )
    result.add_argument("config", type=Path, help="YAML file of the run, such as configs/local.yaml")
    result.add_argument(
        "--check", action="store_true", help="check the config and print the plan, without a cluster"
    )
    result.add_argument(
        "--force",
        action="append",
        default=[],
        choices=STAGES,
        metavar="STAGE",
        help=f"redo a stage and those after it ({', '.join(STAGES)})",
    )
    result.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="FIELD=VALUE",
        help="change a field of the config, such as --set search.num_trials=8",
    )
    result.add_argument("--verbose", action="store_true", help="log more")
    return result


def run(config: Config, names: Collection[str], forced: Collection[str]) -> None:
    """Runs the named stages of a run, and says at the end of a whole run what came of it."""
    from ray_jobs.stages.registry import stages

    started = time.monotonic()
    folder = run_owned(config, stages(), names, forced)
    if set(names) == set(STAGES):
        sys.stdout.write("\n".join(summary_lines(config, folder)) + "\n")
        log.info("all done in %s", duration(time.monotonic() - started))


def run_owned(
    config: Config, every: "Sequence[Stage]", names: Collection[str], forced: Collection[str]
) -> RunFolder:
    """Brings the named stages of `every` to their end, in order, under the lock of the run folder."""
    from ray_jobs.locks import owned
    from ray_jobs.stages.base import check_unchanged, forget, run_stages
    from ray_jobs.stages.begun import forget_ahead
    from ray_jobs.tracking.publish import publish

    folder = open_run(config.storage, config.name)
    with owned(folder.root):
        first = min(
            (number for number, stage in enumerate(every) if stage.name in forced), default=len(every)
        )
        check_unchanged(every[:first], config, folder)
        forget(every[first:], folder)
        if forced:
            forget_ahead(folder)
        write_config(config, folder)
        try:
            run_stages(every, names, config, folder)
        finally:
            publish(config, folder)
    return folder


def write_config(config: Config, folder: RunFolder) -> None:
    import yaml

    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    try:
        folder.write("config.yaml", text.encode())
    except OSError as error:
        raise ConfigError(f"storage: {folder.address}: {error.strerror}") from error
