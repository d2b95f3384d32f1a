"""Tasks whose right answer has parts: lists, steps, table rows, calls, markup."""

import json

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.judge_pairs.task import JudgedTask
from ray_jobs.data.bundled.judge_pairs.texts import asked
from ray_jobs.data.bundled.judge_pairs.words import SURNAMES, code, sentence, word, words


def numbers_down(draws: Draws) -> JudgedTask:
    numbers = draws.sample(range(2, 500), draws.integer(3, 6))
    right = sorted(numbers, reverse=True)
    query = asked(
        draws,
        "From high to low, with blanks between: {t}",
        "{t}: largest first, please.",
        t=" ".join(map(str, numbers)),
    )
    return JudgedTask(query, " ".join(map(str, right)), "order", (" ".join(map(str, reversed(right))),))


def even_numbers(draws: Draws) -> JudgedTask:
    numbers = [draws.integer(2, 99) for _ in range(6)]
    name, rest = draws.pick((("even", 0), ("odd", 1)))
    kept = [str(number) for number in numbers if number % 2 == rest]
    right = ", ".join(kept) or "none"
    query = asked(
        draws, "Keep the {n} numbers: {t}", "Which of {t} are {n}?", n=name, t=", ".join(map(str, numbers))
    )
    others = ", ".join(str(number) for number in numbers if number % 2 != rest)
    return JudgedTask(query, right, f"{name} numbers", (others,) if others else ())


def steps(draws: Draws) -> JudgedTask:
    parts = [sentence(draws) for _ in range(draws.integer(2, 3))]
    lines = [f"{at}) {part}" for at, part in enumerate(parts, start=1)]
    query = asked(draws, "Number the steps as 1), 2), one a line: {t}", t="; ".join(parts))
    return JudgedTask(query, "\n".join(lines), "list of steps", ("\n".join(parts), " ".join(lines)))


def table_row(draws: Draws) -> JudgedTask:
    cells = [draws.pick(SURNAMES), word(draws), str(draws.integer(1, 900)), code(draws)][
        : draws.integer(3, 4)
    ]
    query = asked(
        draws, "As a row of a markdown table: {t}", "Markdown table row with {t}", t=" / ".join(cells)
    )
    right = f"| {' | '.join(cells)} |"
    return JudgedTask(
        query, right, "table row", (" | ".join(cells), ",".join(cells), f"| {' | '.join(reversed(cells))} |")
    )


def call(draws: Draws) -> JudgedTask:
    name, *keys = words(draws, draws.integer(3, 4))
    values = [draws.integer(1, 99) for _ in keys]
    right = f"{name}({', '.join(f'{k}={v}' for k, v in zip(keys, values, strict=True))})"
    told = ", ".join(f"{k} {v}" for k, v in zip(keys, values, strict=True))
    query = asked(
        draws, "Python call of {n} with {t}, by keyword.", "Call {n} in Python, keywords {t}.", n=name, t=told
    )
    return JudgedTask(query, right, "call", (f"{name}({', '.join(map(str, values))})", f"{name}({told})"))


def reversed_lines(draws: Draws) -> JudgedTask:
    parts = words(draws, draws.integer(3, 4))
    query = asked(
        draws,
        "One word a line, the last word first: {t}",
        "{t}\nReverse the order, one a line.",
        t=" ".join(parts),
    )
    right = "\n".join(reversed(parts))
    return JudgedTask(query, right, "list", ("\n".join(parts), " ".join(reversed(parts))))


def array(draws: Draws) -> JudgedTask:
    parts = words(draws, draws.integer(2, 5))
    query = asked(draws, "Write as a JSON array of strings: {t}", "{t} -> JSON array", t=" ".join(parts))
    return JudgedTask(
        query, json.dumps(parts), "array", (f"[{', '.join(parts)}]", json.dumps(dict.fromkeys(parts, "")))
    )


def tagged(draws: Draws) -> JudgedTask:
    tag, text = draws.pick(("b", "i", "h1", "p", "li", "code")), sentence(draws)
    query = asked(draws, "Put in an HTML {g} tag: {t}", "{t}\nWrap it in <{g}>.", g=tag, t=text)
    return JudgedTask(query, f"<{tag}>{text}</{tag}>", "HTML", (text, f"<{tag}>{text}", f"<{tag}/>{text}"))


def path(draws: Draws) -> JudgedTask:
    parts = words(draws, draws.integer(2, 4))
    end = draws.pick(("txt", "csv", "png"))
    query = asked(
        draws,
        "Unix path of the {e} file {f} in folders {t} from the root?",
        e=end,
        f=parts[-1],
        t=" > ".join(parts[:-1]),
    )
    right = f"/{'/'.join(parts)}.{end}"
    return JudgedTask(query, right, "path", (right[1:], right.replace("/", "\\"), f"/{parts[-1]}.{end}"))
