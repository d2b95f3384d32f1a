"""Small records of named values."""

from ray_jobs.data.bundled.draws import Draws
from ray_jobs.data.bundled.words import CITIES, COLORS, GOODS, JOBS, NAMES


def facts(draws: Draws) -> list[tuple[str, str]]:
    """Three or four names and values of a person or of an order."""
    if draws.chance(0.5):
        return [
            ("name", draws.pick(NAMES)),
            ("age", str(draws.integer(18, 79))),
            ("job", draws.pick(JOBS)),
            ("city", draws.pick(CITIES)),
        ][: draws.integer(3, 4)]
    return [
        ("item", draws.pick(GOODS)),
        ("color", draws.pick(COLORS)),
        ("quantity", str(draws.integer(2, 60))),
        ("city", draws.pick(CITIES)),
    ][: draws.integer(3, 4)]
