"""Tasks on letters and words: one short string is right."""

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.judge_pairs.task import JudgedTask
from ray_jobs.data.bundled.judge_pairs.words import code, made_up, sentence, word, words

_ONLY = ("", "", "Write nothing else.", "Just the result.", "No explanation.", "Keep it short.")
_GAPS = ("\n", " ")


def asked(draws: Draws, *forms: str, **values: object) -> str:
    """One of the forms with its gaps filled, now and then with a wish for a short answer."""
    text, wish = draws.pick(forms).format(**values), draws.pick(_ONLY)
    return f"{text}{draws.pick(_GAPS)}{wish}" if wish else text


def backwards(draws: Draws) -> JudgedTask:
    text = word(draws)
    query = asked(
        draws, "Spell {t} backwards.", "Reverse the letters of {t}.", "{t} read from the end?", t=text
    )
    return JudgedTask(query, text[::-1], "reversed word", (text, text[::-1][:-1] + text[-1]))


def capitals(draws: Draws) -> JudgedTask:
    text = sentence(draws)
    query = asked(draws, "Put in capital letters: {t}", "{t}\nThe same in upper case.", t=text)
    return JudgedTask(query, text.upper(), "text in capitals", (text, text.title(), text.lower()))


def initials(draws: Draws) -> JudgedTask:
    parts = words(draws, draws.integer(3, 5))
    right = "".join(part[0].upper() for part in parts)
    query = asked(
        draws, "Acronym of: {t}", "First letters of {t} as one word in capitals?", t=" ".join(parts).title()
    )
    return JudgedTask(query, right, "acronym", (right.lower(), ".".join(right), right[::-1]))


def vowels(draws: Draws) -> JudgedTask:
    text = " ".join(words(draws, draws.integer(1, 3)))
    right = "".join(letter for letter in text if letter not in "aeiou")
    query = asked(draws, "Remove all vowels from: {t}", "{t} without a, e, i, o and u?", t=text)
    return JudgedTask(query, right, "text without vowels", (text,))


def nth_word(draws: Draws) -> JudgedTask:
    parts = sentence(draws).split()
    at = draws.integer(1, len(parts))
    query = asked(
        draws, "Word number {n} of: {t}", 'Which word is at place {n} in "{t}"?', n=at, t=" ".join(parts)
    )
    return JudgedTask(query, parts[at - 1], "word", tuple(part for part in parts if part != parts[at - 1]))


def slug(draws: Draws) -> JudgedTask:
    parts = words(draws, draws.integer(3, 5))
    title = " ".join(parts).title()
    query = asked(draws, "URL slug for the title: {t}", "Make a slug (lower case, hyphens) of {t}", t=title)
    return JudgedTask(query, "-".join(parts), "slug", ("_".join(parts), "".join(parts), title))


def copied_code(draws: Draws) -> JudgedTask:
    right = code(draws)
    other = code(draws)
    query = asked(
        draws,
        "Ticket {t}, seat {o}. Which ticket?",
        "Order {o} was sent with tracking code {t}. The tracking code?",
        "Old password {o}, new password {t}. Give the new one.",
        t=right,
        o=other,
    )
    return JudgedTask(query, right, "code", (other,))


def email(draws: Draws) -> JudgedTask:
    user = made_up(draws) + draws.pick((".", "_", "")) + word(draws)
    host = f"{word(draws)}.{draws.pick(('com', 'org', 'net'))}"
    right = f"{user}@{host}"
    query = asked(
        draws,
        "{s}; write to {t} soon. What is the address?",
        "Mail address in: {s} ({t})",
        t=right,
        s=sentence(draws),
    )
    return JudgedTask(query, right, "address", (user, f"{host}@{user}", f"{user}@example.com"))


def replaced(draws: Draws) -> JudgedTask:
    text = sentence(draws)
    old, new = draws.pick(text.split()[1:]), word(draws)
    parts = [new if part == old else part for part in text.split()]
    query = asked(
        draws, 'Replace "{o}" by "{n}": {t}', "{t}\nThe same with {n} instead of {o}.", o=old, n=new, t=text
    )
    return JudgedTask(query, " ".join(parts), "sentence", (text, text.replace(old, f"{old} {new}")))


def in_order(draws: Draws) -> JudgedTask:
    parts = sentence(draws).split()
    mixed = draws.sample(parts, len(parts))
    query = asked(draws, "Make a sentence of the words: {t}", "Put into order: {t}", t=" / ".join(mixed))
    return JudgedTask(query, " ".join(parts), "sentence", (" ".join(mixed), " ".join(reversed(parts))))
