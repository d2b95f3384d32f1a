"""The configs that come with the project, in a clone or in an installed package."""

import sysconfig
from pathlib import Path

import ray_jobs
from ray_jobs.errors import ConfigError
from ray_jobs.runs import write_whole


def configs_folder() -> Path:
    """`configs/` of the clone that runs, else what pip has put into the environment's `share`."""
    clone = Path(str(ray_jobs.__file__)).resolve().parents[1] / "configs"
    installed = Path(sysconfig.get_path("data")) / "share" / "orpo-on-ray" / "configs"
    return clone if (clone / "local.yaml").is_file() else installed


def names() -> list[str]:
    return sorted(path.stem for path in configs_folder().glob("*.yaml"))


def complete(incomplete: str) -> list[str]:
    return [name for name in names() if name.startswith(incomplete)]


def copy_config(name: str, folder: Path) -> Path:
    """Copies a config into `folder`, with the run that a comparison shares.

    Raises ConfigError for a name that is none, and rather than write over a file.
    """
    if name not in names():
        raise ConfigError(f"{name!r}: no such config; there are {', '.join(names())}")
    wanted = [name, *(["llama-3.2-1b"] if name == "seed-comparison" else [])]
    paths = [folder / f"{each}.yaml" for each in wanted]
    for path in paths:
        if path.exists():
            raise ConfigError(f"{path}: is there already")
    try:
        for path in paths:
            write_whole(path, (configs_folder() / path.name).read_bytes())
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror or error}") from error
    return paths[0]
