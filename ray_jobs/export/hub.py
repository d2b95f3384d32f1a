"""Files of the Hugging Face hub, with what can go wrong there told in one line."""

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_jobs.errors import ModelError
from ray_jobs.export.families import read_object
from ray_jobs.export.weight_files import TWICE
from ray_jobs.hub import connection_errors, gated, refused, status_of

log = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")
ALLOWED = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt")
"""Weights that cannot run code, configs and tokenizers: no pickles, no Python."""


def download_model(repo_id: str, revision: str | None, cache_dir: Path) -> Path:
    """A local folder with a hub model. Raises ModelError, in one line, when it cannot be had."""
    from huggingface_hub import snapshot_download

    with _explained(repo_id, revision):
        found = snapshot_download(
            repo_id, revision=revision, allow_patterns=list(ALLOWED), ignore_patterns=[TWICE, f"*/{TWICE}"]
        )
    return without_code(Path(found), cache_dir)


def download_file(repo_id: str, name: str, revision: str | None) -> Path:
    """One file of a hub repository. Raises ModelError, in one line, when it cannot be had."""
    from huggingface_hub import hf_hub_download

    with _explained(f"{repo_id}:{name}", revision):
        return Path(hf_hub_download(repo_id, name, revision=revision))


@contextmanager
def _explained(what: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise ModelError(f"{what}: {gated()}") from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{what}: has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{what}: no such hub repository or local path, or it is private and needs HF_TOKEN"
        ) from error
    except LocalEntryNotFoundError as error:
        status = status_of(error)
        reason = "the hub cannot be reached" if status is None else refused(status)
        raise ModelError(f"{what}: is not in the local cache, and {reason}") from error
    except EntryNotFoundError as error:
        raise ModelError(f"{what}: no such file in the hub repository") from error
    except HFValidationError as error:
        raise ModelError(f"{what}: is neither a local path nor a hub ID like 'owner/name'") from error
    except HfHubHTTPError as error:
        raise ModelError(f"{what}: {refused(error.response.status_code)}") from error
    except connection_errors() as error:
        raise ModelError(f"{what}: cannot be downloaded: {' '.join(str(error).split())[:300]}") from error


def commit_of(folder: Path) -> str | None:
    """The commit that a folder of the hub's cache holds; None for any other folder."""
    return folder.name if _COMMIT.fullmatch(folder.name) else None


def without_code(folder: Path, cache_dir: Path) -> Path:
    """The folder itself, or where its config names code (`auto_map`), a copy by links without these lines.

    Families that are supported need no code of their own; config.json of some official models names it.
    """
    named = [path for path in sorted(folder.glob("*config.json")) if b'"auto_map"' in path.read_bytes()]
    if not named:
        return folder
    clean = cache_dir / "without-code" / folder.name
    if clean.is_dir():
        return clean
    clean.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=clean.parent))
    try:
        for path in sorted(folder.iterdir()):
            if path in named:
                config = read_object(path)
                config.pop("auto_map", None)
                (beside / path.name).write_text(json.dumps(config, indent=2), encoding="utf-8")
            elif path.is_file():
                _link(path.resolve(), beside / path.name)
        os.rename(beside, clean)
    except OSError:
        if not clean.is_dir():
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return clean


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source)
    except OSError:  # Windows without the right to make links
        shutil.copyfile(source, target)
