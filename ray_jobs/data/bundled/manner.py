"""How an untuned instruct model tends to answer: with words around the answer."""

from ray_jobs.data.bundled.draws import Draws

_AROUND = (
    "Sure! Here is the {what} you asked for:\n\n{answer}",
    "Here's the {what}:\n\n{answer}",
    "The {what} is: {answer}",
    "The {what} is {answer}.",
    'The {what} is "{answer}".',
    "Here is the {what}:\n\n```\n{answer}\n```",
    "To find the {what}, we look at the text. The {what} is {answer}.",
    "{answer}\n\nI hope this helps! Let me know if you need anything else.",
    "The correct {what} for the given text is:\n\n{answer}",
)


def chatty(draws: Draws, what: str, answer: str) -> str:
    """`answer` with words around it; `what` names it in these words."""
    return draws.pick(_AROUND).format(what=what, answer=answer)


def reject(draws: Draws, what: str, right: str, wrong: str, spoken: str | None = None) -> str:
    """A plausible answer that is not right: wordy, wrong, or both.

    `spoken` is a sentence that says the right answer, where there is a natural one.
    """
    kind = draws.integer(0, 9)
    if kind < 4:
        return spoken if spoken is not None and kind < 3 else chatty(draws, what, right)
    return wrong if kind < 7 else chatty(draws, what, wrong)
