"""A tuned model's folder to a repository of a model hub, by explicit command only."""

from pathlib import Path

from ray_jobs.errors import ModelError
from ray_jobs.hub import connection_errors

FILES = ("README.md", "model.gguf", "manifest.json", "Modelfile")


def push(folder: Path, repo_id: str, *, private: bool) -> str:
    """Uploads `folder`'s model, manifest, Modelfile and card; returns the commit's address.

    Raises ModelError, in one line, for a missing file, a missing login or a hub that refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder}: {missing[0]} is missing; finish the run first")
    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, allow_patterns=list(FILES), commit_message="Tuned model"
        )
    except (LocalTokenNotFoundError, HFValidationError) as error:
        raise ModelError(f"{repo_id}: {' '.join(str(error).split())[:300]}") from error
    except HfHubHTTPError as error:
        raise ModelError(
            f"{repo_id}: cannot be pushed to (hf auth login, or HF_TOKEN with the right to write): "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    except connection_errors() as error:
        raise ModelError(f"{repo_id}: cannot be pushed to: {' '.join(str(error).split())[:300]}") from error
    return str(commit.commit_url)
