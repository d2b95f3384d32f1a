"""Tasks on numbers: one number, or what stands for it."""

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.judge_pairs.task import JudgedTask
from ray_jobs.data.bundled.judge_pairs.texts import asked

_ROMAN = (
    (1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL"),
    (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"),
)  # fmt: skip


def arithmetic(draws: Draws) -> JudgedTask:
    a, b = draws.integer(3, 400), draws.integer(2, 90)
    sign, right = draws.pick((("+", a + b), ("-", a - b), ("*", a * b)))
    query = asked(draws, "{a} {s} {b} = ?", "Compute {a} {s} {b}.", "What is {a} {s} {b}?", a=a, b=b, s=sign)
    return JudgedTask(query, str(right), "result", (str(right + 1), str(right - 10), str(-right), str(a)))


def next_number(draws: Draws) -> JudgedTask:
    first, step = draws.integer(1, 90), draws.integer(2, 25)
    shown = ", ".join(str(first + step * at) for at in range(4))
    right = first + 4 * step
    query = asked(draws, "Which number comes next: {t}", "Continue by one number: {t}, ...", t=shown)
    return JudgedTask(query, str(right), "next number", (str(right + step), str(right - 1), shown))


def largest(draws: Draws) -> JudgedTask:
    numbers = draws.sample(range(10, 999), draws.integer(3, 6))
    name, best = draws.pick((("largest", max(numbers)), ("smallest", min(numbers))))
    shown = " ".join(map(str, numbers))
    query = asked(draws, "The {n} of these numbers: {t}", "{t}\nWhich one is the {n}?", n=name, t=shown)
    others = tuple(str(number) for number in numbers if number != best)
    return JudgedTask(query, str(best), f"{name} number", others)


def percent(draws: Draws) -> JudgedTask:
    share, whole = draws.pick((5, 10, 20, 25, 40, 50, 75)), draws.integer(1, 60) * 20
    right = share * whole // 100
    query = asked(draws, "{s}% of {w}?", "How much is {s} percent of {w}?", s=share, w=whole)
    return JudgedTask(query, str(right), "value", (str(right * 10), f"{right}%", str(whole - right)))


def binary(draws: Draws) -> JudgedTask:
    number = draws.integer(2, 127)
    right = f"{number:b}"
    query = asked(draws, "{n} in binary?", "Write the decimal number {n} with base 2.", n=number)
    return JudgedTask(
        query, right, "binary number", (f"0b{right}", f"{number:x}", right[::-1], f"{number + 1:b}")
    )


def clock(draws: Draws) -> JudgedTask:
    hour, minute = draws.integer(1, 11), draws.integer(0, 59)
    right = f"{hour + 12}:{minute:02}"
    query = asked(
        draws, "{h}:{m:02} pm on a 24-hour clock?", "24-hour form of {h}:{m:02} PM:", h=hour, m=minute
    )
    return JudgedTask(
        query,
        right,
        "time",
        (f"{hour}:{minute:02}", f"{hour + 11}:{minute:02}", f"{right} pm", right.replace(":", ".")),
    )


def roman(draws: Draws) -> JudgedTask:
    number = left = draws.integer(3, 2999)
    right = ""
    for value, letters in _ROMAN:
        right += letters * (left // value)
        left %= value
    query = asked(draws, "{n} as a Roman numeral?", "Write {n} in Roman numerals.", n=number)
    return JudgedTask(
        query, right, "Roman numeral", (f"{right}I", right[::-1], right[:-1] or "V", str(number))
    )
