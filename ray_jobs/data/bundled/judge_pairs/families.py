"""Every family of judged tasks, by name."""

from collections.abc import Callable

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.judge_pairs import lists, numbers, texts
from ray_jobs.data.bundled.judge_pairs.task import JudgedTask

PREFIX = "judge-tasks/"
Generate = Callable[[Draws], JudgedTask]

TRAINED: dict[str, Generate] = {
    "arithmetic": numbers.arithmetic,
    "backwards": texts.backwards,
    "binary": numbers.binary,
    "call": lists.call,
    "capitals": texts.capitals,
    "clock": numbers.clock,
    "code": texts.copied_code,
    "email": texts.email,
    "even_numbers": lists.even_numbers,
    "initials": texts.initials,
    "in_order": texts.in_order,
    "largest": numbers.largest,
    "lines": lists.reversed_lines,
    "next_number": numbers.next_number,
    "nth_word": texts.nth_word,
    "numbers_down": lists.numbers_down,
    "path": lists.path,
    "percent": numbers.percent,
    "slug": texts.slug,
    "steps": lists.steps,
    "table_row": lists.table_row,
    "vowels": texts.vowels,
}
"""Families of `bundled:judge-pairs`."""

UNSEEN: dict[str, Generate] = {
    "array": lists.array,
    "replaced": texts.replaced,
    "roman": numbers.roman,
    "tagged": lists.tagged,
}
"""Families that no pair is made of: what a tuned judge is tested on beside the known pairs."""

FAMILIES = TRAINED | UNSEEN
