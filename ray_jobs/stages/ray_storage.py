"""Where Ray keeps experiments and checkpoints, in its own terms: a file system and a path on it."""

from pathlib import Path
from typing import Any

from serving.storage.mirror import origin
from serving.storage.remote import Remote, is_uri


def ray_storage(address: str) -> dict[str, Any]:
    """`storage_path` and `storage_filesystem` of Ray's RunConfigs for a folder or a URI."""
    if not is_uri(address):
        return {"storage_path": address, "storage_filesystem": None}
    remote = Remote(address)
    return {"storage_path": remote.path, "storage_filesystem": remote.filesystem}


def path_of_ray(path: str, folder: Path) -> str:
    """A path on Ray's file system as one of this node, in the same run as `folder`.

    Of a run in an object store it is that in the mirror, where it may have to be fetched.
    """
    store = origin(folder)
    if store is None:
        return path
    return str(store.root / path.removeprefix(f"{store.remote.path}/"))
