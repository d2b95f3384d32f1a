import pytest

from ray_jobs.orpo.evaluation import batches_of_worker


@pytest.mark.parametrize("num_pairs", [1, 2, 7, 8, 9, 20])
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_have_as_many_batches_and_all_pairs(num_pairs: int, num_workers: int) -> None:
    shares = [batches_of_worker(num_pairs, 4, rank, num_workers) for rank in range(num_workers)]
    assert len({len(share) for share in shares}) == 1, "sharded models are asked together"
    batches = [batch for share in shares for batch in share]
    assert all(0 < len(batch) <= 4 for batch in batches)
    scored = [index for batch in batches for index in batch]
    assert set(scored) == set(range(num_pairs))
    again = len(scored) - num_pairs
    assert again == max(0, num_workers - num_pairs)
    assert not again or all(len(batch) == 1 for batch in batches), "its likelihood is then its own"
