"""Right or wrong, told by a program, for the sources where one can tell."""

from ray_jobs.data.bundled.families import FAMILIES, PREFIX
from ray_jobs.records import Prompt


def family(source: str) -> str | None:
    """The bundled task family that a source names, or None."""
    name = source.removeprefix(PREFIX)
    return name if source != name and name in FAMILIES else None


def check_answer(source: str, prompt: Prompt, answer: str) -> bool | None:
    """Whether an answer is right; None where no program can tell for that source.

    Strict: the prompts ask for the bare answer, so a right answer with words around it is wrong.
    """
    name = family(source)
    if name is None or prompt.reference is None:
        return None
    return FAMILIES[name].check(prompt.reference, answer)
