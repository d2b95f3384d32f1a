"""Judged once, ever."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ray_jobs.errors import DataError
from ray_jobs.judging.cache import JudgementCache, default_cache_path, judgement_key
from ray_jobs.records import Judgement

ONE = Judgement("a", "M", 3, 3.25, "gr\u00fc\u00df \ud800", None, "s", "j", 1.5)


def test_what_is_put_is_got(tmp_path: Path) -> None:
    with JudgementCache(tmp_path / "deep" / "cache.sqlite") as cache:
        assert cache.get(["k"]) == {}
        cache.put("k", ONE)
        cache.put("k", replace(ONE, score=5))
        assert cache.get(["k", "other", "k"]) == {"k": ONE}
    with JudgementCache(tmp_path / "deep" / "cache.sqlite") as cache:
        assert cache.get(["k"]) == {"k": ONE}
        assert len(cache) == 1


def test_many_keys_at_once(tmp_path: Path) -> None:
    with JudgementCache(tmp_path / "cache.sqlite") as cache:
        keys = [str(index) for index in range(1200)]
        for key in keys[::2]:
            cache.put(key, replace(ONE, id=key))
        assert set(cache.get(keys)) == set(keys[::2])


def test_keys_differ_by_every_part() -> None:
    parts = [
        ("a", "b"),
        ("ab", ""),
        ("a", "b", ""),
        ("a", None),
        ("a", "None"),
        ("a", 1),
        ("a", "1"),
        ("a", 1.5),
        ("\ud800",),
    ]
    assert len({judgement_key(*part) for part in parts}) == len(parts)


def test_processes_share_it(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    code = (
        "import sys; from pathlib import Path; from ray_jobs.judging.cache import JudgementCache;"
        "from ray_jobs.records import Judgement; cache = JudgementCache(Path(sys.argv[1]));"
        "one = Judgement('a', 'M', 1, 1.0, None, None, 's', 'j', 0.0);"
        "[cache.put(f'{sys.argv[2]}-{n}', one) for n in range(200)]"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), str(number)]) for number in range(4)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0, 0]
    with JudgementCache(path) as cache:
        assert len(cache) == 800


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    path.write_bytes(b"this is no database, and longer than its header would be" * 20)
    with pytest.raises(
        DataError, match=r"cache\.sqlite: cannot be used as a judgement cache .judge.cache: false"
    ):
        JudgementCache(path)


def test_default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JUDGEMENT_CACHE", raising=False)
    assert default_cache_path().name == "judgements.sqlite"
    monkeypatch.setenv("JUDGEMENT_CACHE", str(tmp_path / "x.sqlite"))
    assert default_cache_path() == tmp_path / "x.sqlite"
