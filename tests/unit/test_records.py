from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.records import (
    Message,
    Pair,
    Prompt,
    as_row,
    pair_from_row,
    prompt_from_row,
    prompt_sha256,
    row_seed,
)


def test_rows_come_back_as_the_records_they_were() -> None:
    turns = (Message("system", "Be brief."), Message("user", "Hi"))
    pair = Pair("p1", "tasks/json", turns, "yes", "no")
    prompt = Prompt("q1", "tasks/json", turns, None)
    assert pair_from_row(as_row(pair)) == pair
    assert prompt_from_row(as_row(prompt)) == prompt


def test_prompt_hash_keeps_roles_and_borders_apart() -> None:
    one = prompt_sha256([Message("user", "ab"), Message("user", "c")])
    assert one != prompt_sha256([Message("user", "a"), Message("user", "bc")])
    assert one != prompt_sha256([Message("user", "ab"), Message("assistant", "c")])
    assert one != prompt_sha256([Message("user", "abuserc")])


@given(st.integers(0, 2**31 - 1), st.text())
def test_row_seeds_are_in_range_and_depend_on_run_and_row(seed: int, row_id: str) -> None:
    assert 0 <= row_seed(seed, row_id) < 2**31
    assert row_seed(seed, row_id) == row_seed(seed, row_id)
    assert row_seed(seed, row_id) != row_seed(seed, row_id + "x")


def test_row_seed_is_pinned_across_platforms() -> None:
    assert row_seed(0, "a") == 1324999421
