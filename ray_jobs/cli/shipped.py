"""The configs that come with the project, in a clone or in an installed package."""

import json
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import ray_jobs
from ray_jobs.errors import ConfigError
from ray_jobs.runs import write_whole

NAMED = {
    "seed-comparison": ("llama-3.2-1b.yaml",),
    "own-data": ("metrics/instruction-following.yaml",),
}
"""Config -> files that it names."""
NEXT = {"seed-comparison": "orpo compare {} --check", "serve": "serve deploy {}"}
"""Config -> the command that takes it, where that is not `orpo run`."""


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
    """Copies a config into `folder`, with the files that it names.

    Raises ConfigError for a name that is none, and rather than write over a file.
    """
    if name not in names():
        raise ConfigError(f"{name!r}: no such config; there are {', '.join(names())}")
    files = (f"{name}.yaml", *NAMED.get(name, ()))
    for file in files:
        if (folder / file).exists():
            raise ConfigError(f"{folder / file}: is there already")
    try:
        for file in files:
            text = (configs_folder() / file).read_text(encoding="utf-8")
            write_whole(folder / file, _moved(text, files, folder).encode())
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror or error}") from error
    first: str = files[0]
    return folder / first


def _moved(text: str, files: Sequence[str], folder: Path) -> str:
    """A config's text whose paths, relative to the working folder, name the copies in `folder`."""
    if folder == Path("configs"):
        return text
    for file in files:
        text = text.replace(f"[configs/{file}]", f"[{json.dumps((folder / file).as_posix())}]")
    return text


def next_step(name: str, path: Path) -> str:
    """The command that looks at a copied config, or takes it."""
    return NEXT.get(name, "orpo run {} --check").format(path)
