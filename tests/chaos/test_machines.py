"""A Ray cluster of several machines, of which one dies and another one is unplugged while a pipeline runs."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.machines import RAY, Machine, Network, network, wait_until, why_not
from tests.chaos.results import compare

CONFIG = "tests/chaos/stub.yaml"
STARTED = "Ray runtime started"

pytestmark = pytest.mark.skipif((reason := why_not()) is not None, reason=str(reason))


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Network]:
    """A head, on which nothing computes."""
    with network(tmp_path / "machines") as made:
        add(made, 0)
        yield made


def add(made: Network, num_cpus: int) -> Machine:
    machine = made.add_machine(num_cpus)
    wait_until(lambda: STARTED in machine.printed(), 90, machine.printed)
    return machine


class Pipeline:
    """The pipeline's command on the head of a cluster."""

    def __init__(self, made: Network, folder: Path) -> None:
        self.root = folder / "runs/chaos"
        self.head = made.machines[0]
        changes = [f"storage={folder}/runs", f"registry={folder}/registry"]
        sets = [part for change in changes for part in ("--set", change)]
        line = (sys.executable, "-m", "tests.chaos.stub_pipeline", CONFIG, *sets)
        self.process = self.head.start(*line, env={"RAY_ADDRESS": made.address})

    def comes_to(self, pattern: str) -> None:
        """Waits until there is such a file in the run folder."""
        wait_until(lambda: self.has_ended() or any(self.root.glob(pattern)), 120, self.head.printed)
        assert not self.has_ended(), self.head.printed()

    def has_ended(self) -> bool:
        return self.process.poll() is not None


def one_that_runs(made: Network, title: str) -> Machine:
    wait_until(lambda: any(one.runs(title) for one in made.machines[1:]), 60, f"no machine runs {title}")
    return next(one for one in made.machines[1:] if one.runs(title))


@pytest.mark.long
def test_machines_that_die_or_are_unplugged_and_a_lost_head_lose_nothing(
    machines: Network, unbroken: Path, tmp_path: Path
) -> None:
    add(machines, 2)
    add(machines, 2)
    pipeline = Pipeline(machines, tmp_path)
    pipeline.comes_to("tune/trials/*/checkpoint_*")
    one_that_runs(machines, "ray::ImplicitFunc").power_off()
    add(machines, 2)
    pipeline.comes_to("answers/base/unfinished/rows-*")
    one_that_runs(machines, "ray::MapWorker").unplug()
    pipeline.comes_to("judgements/unfinished/look-0/blocks/rows-*")
    pipeline.head.power_off()
    with network(tmp_path / "others") as others:
        add(others, 0)
        add(others, 2)
        again = Pipeline(others, tmp_path)
        assert again.process.wait(180) == 0, again.head.printed()
    assert compare(unbroken, again.root) == []


def test_who_lacks_the_token_submits_no_job(machines: Network) -> None:
    head = machines.machines[0]

    def submit(**env: str) -> int:
        line = (RAY, "job", "submit", "--address=http://127.0.0.1:8265", "--", "true")
        return head.start(*line, env=env).wait(60)

    assert submit() == 0, head.printed()
    assert submit(RAY_AUTH_MODE="disabled") != 0
    assert submit(RAY_AUTH_TOKEN="f" * 64) != 0
    assert "authenticat" in head.printed().lower()
