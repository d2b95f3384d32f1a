import pytest

from serving.admission import Admission, RateLimit, Refused


def test_the_bound_holds_and_places_come_free() -> None:
    admission = Admission(3)
    with admission.enter(2):
        with admission.enter(1):
            assert admission.num_inside == 3
            with pytest.raises(Refused) as refused, admission.enter(1):
                pass
            assert refused.value.retry_after_s >= 1
        with admission.enter(1):
            assert admission.num_inside == 3
    assert (admission.num_inside, admission.num_refused) == (0, 1)


def test_a_lone_request_larger_than_the_bound_is_let_in() -> None:
    admission = Admission(3)
    with admission.enter(8), pytest.raises(Refused), admission.enter(1):
        pass
    assert admission.num_inside == 0


def test_a_rate_refills_with_time_and_is_per_caller() -> None:
    now_s = 0.0
    rates = RateLimit(clock=lambda: now_s)
    for _ in range(2):
        rates.take("alice", 2)
    with pytest.raises(Refused) as refused:
        rates.take("alice", 2)
    assert refused.value.retry_after_s == pytest.approx(30)
    rates.take("bob", 2)
    now_s = 30.0
    rates.take("alice", 2)
    with pytest.raises(Refused):
        rates.take("alice", 2)
    rates.take("carol", None)
