import pytest

from ray_jobs.errors import ConfigError, DataError
from ray_jobs.orpo.plan import pair_order, plan_steps
from ray_jobs.orpo.settings import TrainingSettings
from tests.unit.orpo.tiny import random_pairs

SETTINGS = TrainingSettings(num_steps=7, pairs_per_step=6, max_batch_tokens=150, seed=3)


def test_order_is_whole_shuffled_passes() -> None:
    order = pair_order(10, SETTINGS)
    assert len(order) == 42
    assert [sorted(order[start : start + 10]) for start in (0, 10, 20, 30)] == [list(range(10))] * 4
    assert order[:10] != order[10:20]
    assert order == pair_order(10, SETTINGS)
    assert order != pair_order(10, SETTINGS.model_copy(update={"seed": 4}))


@pytest.mark.parametrize("num_workers", [1, 2, 3, 6])
def test_workers_share_the_pairs_of_each_step(num_workers: int) -> None:
    pairs = random_pairs(20)
    order = pair_order(len(pairs), SETTINGS)
    plans = [plan_steps(pairs, SETTINGS, rank=rank, num_workers=num_workers) for rank in range(num_workers)]
    for step in range(SETTINGS.num_steps):
        shares = [plan[step] for plan in plans]
        indices = [index for share in shares for row in share.rows for index in row]
        assert sorted(indices) == sorted(order[6 * step : 6 * step + 6])
        assert len({len(share.rows) for share in shares}) == 1, "sharded optimisers need equally many rows"
        nll_tokens = sum(len(pairs[i].prompt) + len(pairs[i].chosen) - 1 for i in indices)
        assert {(share.total_pairs, share.total_nll_tokens) for share in shares} == {(6, nll_tokens)}


def test_rows_keep_to_the_budget() -> None:
    pairs = random_pairs(20)
    for plan in plan_steps(pairs, SETTINGS, rank=0, num_workers=1):
        for row in plan.rows:
            assert len(row) == 1 or sum(pairs[index].num_shared for index in row) <= 150


def test_uneven_shares_and_missing_pairs_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"pairs_per_step: 6 is not a multiple of 4 workers"):
        plan_steps(random_pairs(8), SETTINGS, rank=0, num_workers=4)
    with pytest.raises(DataError, match="no usable training pairs"):
        plan_steps([], SETTINGS, rank=0, num_workers=1)
