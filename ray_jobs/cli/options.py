"""What the commands of `orpo` share: arguments, options and their completion."""

from pathlib import Path
from typing import Annotated

import typer

from ray_jobs.command import STAGES


def complete_fields(incomplete: str) -> list[str]:
    from ray_jobs.config import Config
    from ray_jobs.config_reference import leaf_fields

    return [f"{name}=" for name in leaf_fields(Config) if name.startswith(incomplete)]


def complete_stages(incomplete: str) -> list[str]:
    return [stage for stage in STAGES if stage.startswith(incomplete)]


def known_stages(names: list[str]) -> list[str]:
    """The names, or a usage error that tells the known ones."""
    for name in names:
        if name not in STAGES:
            raise typer.BadParameter(f"{name!r} is no stage; there are {', '.join(STAGES)}")
    return names


ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file of the run, such as configs/local.yaml.")
]
Check = Annotated[bool, typer.Option("--check", help="Check the config and print the plan, nothing else.")]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Change a field of the config, checked like the file: --set search.num_trials=8.",
        autocompletion=complete_fields,
    ),
]
Forced = Annotated[
    list[str] | None,
    typer.Option(
        "--force",
        metavar="STAGE",
        help=f"Redo a stage and those after it ({', '.join(STAGES)}).",
        autocompletion=complete_stages,
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]
Registry = Annotated[
    str,
    typer.Option(envvar="SERVING_REGISTRY", metavar="FOLDER", help="Folder or URI of the champion."),
]
