"""A base model in an object store: each node fetches a GGUF file, or a folder, once."""

from fnmatch import fnmatch
from pathlib import Path

from ray_jobs.errors import ModelError
from ray_jobs.export.weight_files import TWICE
from serving.storage.node_cache import folder_copy, local_copy
from serving.storage.remote import Remote

PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def check_stored(uri: str) -> None:
    """Raises ModelError where the store has nothing of that name, StorageError where it does not answer."""
    found = Remote(uri).stamp() if uri.endswith(".gguf") else Remote(uri).listing()
    if not found:
        raise ModelError(f"{uri}: there is no such model")


def fetched_model(uri: str) -> Path:
    """This node's copy of the file, or of those that lie directly in the folder, as the store has them now.

    Raises ModelError for what is not there or would bring pickles, StorageError where the store fails.
    """
    check_stored(uri)
    if uri.endswith(".gguf"):
        return local_copy(uri)
    there = Remote(uri).listing()
    files = {name: there[name] for name in there if "/" not in name and not fnmatch(name, TWICE)}
    for name in sorted(files):
        if any(fnmatch(name, pattern) for pattern in PICKLES):
            path = f"{uri.rstrip('/')}/{name}"
            raise ModelError(f"{path}: pickled weights can run code; keep only safetensors in the folder")
    return folder_copy(uri, files)
