"""docs/config.md says what the typed config says."""

from pathlib import Path

from ray_jobs.config import Config
from ray_jobs.config_reference import leaf_fields, reference

PAGE = Path(__file__).parents[2] / "docs" / "config.md"


def test_the_page_is_the_one_that_the_config_makes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == reference(Config), "renew it: python -m ray_jobs.config_reference --write docs/config.md"


def test_every_field_of_every_section_has_a_line() -> None:
    page = reference(Config)
    for dotted in leaf_fields(Config):
        section, _, field = dotted.rpartition(".")
        heading = f"## `{section}`" if section else "## Top level"
        assert f"| `{field}` |" in page.split(heading + "\n")[1].split("\n## ")[0], dotted


def test_every_field_has_a_text_inherited_ones_too() -> None:
    page = reference(Config)
    rows = [line for line in page.splitlines() if line.startswith(("| `", "| [`"))]
    assert [row for row in rows if not row.removesuffix("|").rpartition("|")[2].strip()] == []
    assert "| `cores` | whole number ≥ 1 | `1` | Physical cores that the engine owns. |" in page
    assert "| [`verdict`](#verdict) | section |  | The decision rule. |" in page


def test_defaults_bounds_and_texts_are_those_of_the_fields() -> None:
    page = reference(Config)
    assert "| `seed` | whole number ≥ 0, < 2.14748e+09 | `0` | Every random choice of the run follows" in page
    assert '| `overlap` | `refuse`, `drop` | `"refuse"` |' in page
    assert "| `base` | text | required |" in page
    assert "### " not in page
