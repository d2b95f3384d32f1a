"""Where a run keeps what a search's best trials have trained: adapters, or all weights."""


def candidate_folder(number: int) -> str:
    """Of the number-th best trial."""
    return "tune/best" if number == 1 else f"tune/best-{number}"
