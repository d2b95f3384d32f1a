import math
from pathlib import Path

import pytest

from ray_jobs.errors import ConfigError
from ray_jobs.yaml_files import MAX_BYTES, read_yaml


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_plain_values(tmp_path: Path) -> None:
    text = "a: 1e-4\nb: [1, 2.5, text]\nc: {d: null, e: true}\nf: 1E+3\ng: v1e\nh: 3.0e-4\ni: off\nj: False\n"
    assert read_yaml(write(tmp_path, text)) == {
        "a": 1e-4,
        "b": [1, 2.5, "text"],
        "c": {"d": None, "e": True},
        "f": 1000.0,
        "g": "v1e",
        "h": 3e-4,
        "i": "off",
        "j": False,
    }


def test_numbers_and_dates_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    text = (
        "a: 010\nb: 1:30\nc: 2026-11-26\nd: 1_000\ne: 0x1F\nf: 0o17\ng: .5\nh: 12:30:45.5\ni: +.inf\nj: 09\n"
    )
    text += "k: ~\nl:\n"
    assert read_yaml(write(tmp_path, text)) == {
        "a": 10, "b": "1:30", "c": "2026-11-26", "d": 1000, "e": 31, "f": 15, "g": 0.5, "h": "12:30:45.5",
        "i": math.inf, "j": 9, "k": None, "l": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: key 'a' stands twice"),
        ("a: &x [1]\nb: *x\n", "line 2: aliases are not supported"),
        ("a: !!python/object/apply:os.system ['true']\n", "line 1: could not determine a constructor"),
        ("a: [1, 2\n", "line 2:"),
        ("1: a\n1: b\n", "line 2: key '1' stands twice"),
        ("[1]: a\n", "a key must be a word"),
        (b"a: \xff\n", "not UTF-8 text (byte 3)"),
        ("[" * 20_000, "nested too deeply"),
        ("a: 1\n---\nb: 2\n", "another document"),
    ],
)
def test_refusals_are_one_line_with_the_file(tmp_path: Path, text: str | bytes, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert says in message
    assert "\n" not in message


def test_a_huge_file_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(MAX_BYTES)):
        read_yaml(write(tmp_path, "a" * (MAX_BYTES + 1)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: No such file"):
        read_yaml(tmp_path / "absent.yaml")
