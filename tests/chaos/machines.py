"""Machines on this one: each with a network, a host name, processes and shared memory of its own.

Linux namespaces, joined by a switch (a bridge in a namespace of its own). What a machine has in common with
the others is the file system, as if they mounted one, but for Ray's folder. Needs root and iproute2; nothing
of it is left when its processes have ended.
"""

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
PORT = 6379
BARE = ("--net", "--fork", "--kill-child")
WHOLE = (*BARE, "--uts", "--ipc", "--mount", "--pid", "--mount-proc")
WAIT = "exec sleep infinity"
QUICK = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "6",
}
"""A machine that does not answer for some seconds is lost; by Ray's defaults that takes up to a minute."""


def why_not() -> str | None:
    """Why this system has no such machines; None where it has."""
    if missing := [tool for tool in ("unshare", "nsenter", "ip") if shutil.which(tool) is None]:
        return f"the system has no {missing[0]}"
    line = ["unshare", *WHOLE, "sh", "-c", "ip link add switch type bridge && mount -t tmpfs tmpfs /dev/shm"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"may not make namespaces: {done.stderr.strip()}"


class Namespace:
    """A process that sleeps, and what was unshared for it. All that runs inside dies with it."""

    def __init__(self, kinds: Sequence[str], script: str) -> None:
        self._owner = subprocess.Popen(["unshare", *kinds, "sh", "-c", f"{script}; {WAIT}"])
        wait_until(self._is_up, 20, f"no namespace: {script}")

    def _is_up(self) -> bool:
        inside = psutil.Process(self._owner.pid).children()
        if not inside or inside[0].name() != "sleep":
            return False
        self.pid = inside[0].pid
        return True

    def run(self, *command: str) -> None:
        """A command in the network of the namespace."""
        subprocess.run(["nsenter", f"--target={self.pid}", "--net", *command], check=True)

    def end(self) -> None:
        self._owner.kill()
        self._owner.wait()


class Machine(Namespace):
    def __init__(self, network: "Network", number: int) -> None:
        self.address, self.port = f"10.77.0.{number}", f"port{number}"
        self._network = network
        folder = network.folder / f"machine-{number}"
        folder.mkdir(parents=True)
        Path("/tmp/ray").mkdir(exist_ok=True)
        script = (
            f"hostname machine-{number} && ip link set lo up && mount -t tmpfs tmpfs /dev/shm"
            f" && mount --bind {folder} /tmp/ray"
        )
        super().__init__(WHOLE, script)
        self._log = folder / "log"
        network.join(self)

    def start(self, *command: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        inside = ["nsenter", f"--target={self.pid}", "--net", "--uts", "--ipc", "--mount", "--pid"]
        line = [*inside, "env", f"--chdir={ROOT}", *command]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                line, stdout=log, stderr=log, env=self._network.env | dict(env or {}), start_new_session=True
            )

    def start_ray(self, *options: str) -> None:
        line = (RAY, "start", "--block", f"--node-ip-address={self.address}", "--disable-usage-stats")
        self.start(*line, "--object-store-memory=100000000", *options)

    def runs(self, title: str) -> bool:
        """Whether a process whose title begins so is on the machine."""
        return any(line.startswith(title) for line in map(command_of, self._pids()))

    def _pids(self) -> list[int]:
        mine = namespace_of(self.pid)
        return [pid for pid in psutil.pids() if mine and namespace_of(pid) == mine]

    def printed(self) -> str:
        return self._log.read_text(errors="replace")[-4000:]

    def power_off(self) -> None:
        """All processes die at once."""
        self.end()

    def unplug(self) -> None:
        """No packet comes through any more; the processes go on."""
        self._network.switch.run("ip", "link", "set", self.port, "down")


class Network:
    """A switch, and a Ray cluster on the machines that are joined to it. The first one is the head."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = dict(os.environ) | QUICK | {"PYTHONPATH": str(ROOT)}
        self.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.switch = Namespace(BARE, "ip link add switch type bridge && ip link set switch up")
        self.machines: list[Machine] = []

    def join(self, machine: Machine) -> None:
        self.machines.append(machine)
        link = ("ip", "link")
        ends = ("type", "veth", "peer", "name", "eth0", "netns", str(machine.pid))
        self.switch.run(*link, "add", machine.port, *ends)
        self.switch.run(*link, "set", machine.port, "master", "switch", "up")
        machine.run("ip", "address", "add", f"{machine.address}/24", "dev", "eth0")
        machine.run(*link, "set", "eth0", "up")

    @property
    def address(self) -> str:
        return f"{self.machines[0].address}:{PORT}"

    def add_machine(self, num_cpus: int) -> Machine:
        """One more of the cluster; as the first one, its head."""
        machine = Machine(self, len(self.machines) + 1)
        if len(self.machines) == 1:
            place = ("--head", f"--port={PORT}", "--dashboard-host=127.0.0.1")
        else:
            place = (f"--address={self.address}",)
        machine.start_ray(*place, f"--num-cpus={num_cpus}")
        return machine

    def end(self) -> None:
        for namespace in (*self.machines, self.switch):
            namespace.end()


@contextmanager
def network(folder: Path) -> Iterator[Network]:
    made = Network(folder)
    try:
        yield made
    finally:
        made.end()


def namespace_of(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def wait_until(what: Callable[[], bool], deadline_s: float, why: str | Callable[[], str]) -> None:
    end = time.monotonic() + deadline_s
    while not what():
        assert time.monotonic() < end, why if isinstance(why, str) else why()
        time.sleep(0.05)
