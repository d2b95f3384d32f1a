"""Where the adapters of a search's best trials are kept in a run."""

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


def candidate_folder(number: int) -> str:
    """Of the number-th best trial."""
    return "tune/best" if number == 1 else f"tune/best-{number}"
