"""What the ingress knows of replicas that it does not ask."""

import asyncio
import threading

import pytest

from serving.board import Board, ReplicaState, keep_saying
from serving.calls import Health, ModelCard, Unavailable

READY = Health(True, "aa", "ok")
WAITS = Health(False, None, "there is no champion that can be served yet")


def state(
    health: Health = READY, active: int = 0, model: str = "champion", name: str = "one"
) -> ReplicaState:
    metrics = f'# TYPE a gauge\na{{replica="{name}"}} {active}\n'
    return ReplicaState(health, [ModelCard(model, "aa", "run", 0)], metrics)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_an_empty_board_is_not_ready() -> None:
    board = Board()
    assert not board.health().ready
    with pytest.raises(Unavailable):
        board.models()
    assert "serving_replicas 0" in board.metrics()


def test_replicas_are_told_apart_and_one_that_is_ready_suffices() -> None:
    board = Board()
    board.put("one", state(active=3))
    board.put("two", state(WAITS, active=2, model="newer", name="two"))
    board.put("one", state(active=4))
    assert board.metrics() == (
        '# TYPE a gauge\na{replica="two"} 2\na{replica="one"} 4\n'
        "# TYPE serving_replicas gauge\nserving_replicas 2\n"
    )
    assert board.health() == READY
    board.put("two", state(WAITS, model="newest"))
    assert [card.name for card in board.models()] == ["newest"], "the last word counts"


def test_a_replica_that_falls_silent_is_gone() -> None:
    clock = Clock()
    board = Board(max_age_s=5, clock=clock)
    board.put("one", state())
    clock.now_s = 4
    board.put("two", state(WAITS))
    clock.now_s = 5.5
    assert board.health() == WAITS
    assert "serving_replicas 1" in board.metrics()
    clock.now_s = 20
    assert not board.states()
    assert [card.name for card in board.models()] == ["champion"], "what there is has not changed by silence"


def test_what_fails_once_is_said_again() -> None:
    """Of looking, and of sending."""
    stop, said, looks = threading.Event(), [], []

    async def look() -> ReplicaState:
        looks.append(1)
        if len(looks) == 1:
            raise OSError("the registry is away")
        return state()

    async def send(one: ReplicaState) -> None:
        if len(looks) == 2:
            raise RuntimeError("no ingress yet")
        said.append(one)
        stop.set()

    asyncio.run(asyncio.wait_for(keep_saying(look, send, until=stop, every_s=0), 10))
    assert (len(looks), len(said)) == (3, 1)
