"""`orpo doctor`: is everything here that a run needs, and what will each model size do."""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ray_jobs.cli import machine
from ray_jobs.cli.forecast import SIZES, Outlook, outlook, table
from ray_jobs.errors import UserError
from serving.engine.topology import memory_bytes

LITTLE_DISK_BYTES = 5e9
LITTLE_SHARED_BYTES = 1e9
Level = Literal["ok", "note", "bad"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `bad`: a run cannot work; `note`: something is missing or slower."""

    subject: str
    level: Level
    text: str


@dataclass(frozen=True)
class Examination:
    """All findings, and what each model size will do."""

    findings: tuple[Finding, ...]
    outlooks: tuple[Outlook, ...]

    @property
    def usable(self) -> bool:
        return all(finding.level != "bad" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        return {
            "usable": self.usable,
            "findings": [asdict(finding) for finding in self.findings],
            "models": [row.as_json() for row in self.outlooks],
        }

    def lines(self) -> list[str]:
        marks = {"ok": "  ", "note": "! ", "bad": "X "}
        found = [f"{marks[one.level]}{one.subject:<10} {one.text}" for one in self.findings]
        measured = any(row.answer_tokens_per_s for row in self.outlooks)
        basis = (
            "scaled by weights from the rates above" if measured else "by memory alone: nothing was measured"
        )
        notes = [
            f"What each size will do here, {basis}: many answers of 256 tokens to prompts of 256 together,",
            "all cores; training with adapters on frozen weights.",
        ]
        return [*found, "", *notes, *table(list(self.outlooks))]


def examine(storage: Path, *, measured: bool) -> Examination:
    """Looks at the machine; measures, in some 20 s, where `measured`."""
    rates = measure() if measured else Rates()
    total, limit = memory_bytes()
    usable = limit or total
    gpus = machine.gpus()
    rows = [
        outlook(
            name,
            usable,
            rates.engine,
            rates.matrix,
            bytes_per_weight=2.0 if rates.bf16 or gpus else 4.0,
            training_memory=machine.gpu_memory_bytes(gpus),
        )
        for name in SIZES
    ]
    findings = (*look(storage, total, limit, gpus), *rates.findings)
    return Examination(findings, tuple(rows))


@dataclass(frozen=True)
class Rates:
    """What was measured; None where it was not or could not be."""

    engine: machine.EngineRate | None = None
    matrix: float | None = None
    bf16: bool = False
    findings: tuple[Finding, ...] = ()


def measure() -> Rates:
    from serving.engine.errors import EngineError

    threads = machine.num_cores()
    rate = machine.copy_rate(threads)
    findings = [
        Finding("bandwidth", "ok", f"memory copies {rate / machine.GB:.1f} GB/s with {threads} core(s)")
    ]
    engine, matrix, kind = None, None, ""
    try:
        engine = machine.engine_rate()
        findings.append(_engine_finding(engine))
    except (UserError, EngineError, ImportError) as error:
        findings.append(Finding("engine", "note", f"not measured: {error}"))
    try:
        matrix, kind = machine.matrix_rate()
        findings.append(Finding("matrices", "ok", f"{matrix / 1e9:,.0f} GFLOP/s in {kind}"))
    except ImportError as error:
        findings.append(Finding("matrices", "note", f"not measured, training is not installed: {error}"))
    return Rates(engine, matrix, kind.startswith("bfloat16"), tuple(findings))


def _engine_finding(rate: machine.EngineRate) -> Finding:
    from serving.engine.llamacpp import kernels
    from serving.engine.llamacpp.half_precision import SLOW_BUILD, sums_in_half_precision

    text = (
        f"SmolLM2-135M: {rate.answer_tokens_per_s:,.0f} answer tokens/s and "
        f"{rate.prompt_tokens_per_s:,.0f} prompt tokens/s, 16 answers together"
    )
    if sums_in_half_precision():
        return Finding("engine", "note", f"{text}; {SLOW_BUILD}")
    state = kernels.state()
    if state.in_use:
        return Finding("engine", "ok", f"{text}, by our kernels for {state.instruction_set}")
    level: Level = "note" if kernels.COMMAND in state.reason else "ok"
    return Finding("engine", level, f"{text}, by llama.cpp's kernels: {state.reason}")


def look(storage: Path, total: int | None, limit: int | None, gpus: list[str]) -> Iterator[Finding]:
    yield Finding("system", "ok" if sys.version_info[:2] in ((3, 11), (3, 12)) else "note", machine.system())
    yield from _processor()
    yield _memory(total, limit)
    yield from _disks(storage)
    found = machine.compiler()
    yield Finding(
        "compiler", "ok" if found else "note", found or "none: the engine cannot be compiled for this machine"
    )
    yield Finding("gpu", "ok", "; ".join(gpus) if gpus else "none: trials train on the CPU")
    yield from _packages()
    yield from _tokens()


def _processor() -> Iterator[Finding]:
    from serving.engine.calibration import cpu_name
    from serving.engine.topology import cpu_quota

    quota = cpu_quota()
    shown = os.cpu_count() or 1
    text = f"{cpu_name()}: {machine.num_cores()} usable core(s), {shown} processor(s) shown"
    if quota is not None:
        text += f", control group grants {quota:g}"
    if features := machine.cpu_features():
        text += f"; {' '.join(features)}"
    yield Finding("processor", "ok", text)


def _memory(total: int | None, limit: int | None) -> Finding:
    if total is None:
        return Finding("memory", "note", "its size is not known on this platform")
    text = f"{total / machine.GB:.1f} GB"
    if limit is not None:
        text += f", control group allows {limit / machine.GB:.1f} GB"
    return Finding("memory", "note" if (limit or total) < 4e9 else "ok", text)


def _disks(storage: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(machine.existing_parent(storage)).free
    level: Level = "ok" if free > LITTLE_DISK_BYTES else "note"
    yield Finding("disk", level, f"{free / machine.GB:.1f} GB free for {storage}")
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        few = free < LITTLE_SHARED_BYTES
        hint = "; Ray's object store falls back to disk (containers: --shm-size=4g)" if few else ""
        yield Finding("shared", "note" if few else "ok", f"{free / machine.GB:.1f} GB free in {shared}{hint}")


PACKAGES = {
    "ray": True,
    "llama-cpp-python": True,
    "torch": False,
    "deepspeed": False,
    "openvino-genai": False,
}
"""Package -> whether nothing works without it."""


def _packages() -> Iterator[Finding]:
    found = {name: machine.version_of(name) for name in PACKAGES}
    missing = [name for name, needed in PACKAGES.items() if needed and found[name] is None]
    have = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    if missing:
        yield Finding(
            "packages", "bad", f"missing: {', '.join(missing)} (pip install orpo-on-ray); have {have}"
        )
        return
    trains = found["torch"] is not None
    hint = "" if trains else "; training needs the extra: pip install 'orpo-on-ray[train]'"
    yield Finding("packages", "ok" if trains else "note", have + hint)


def _tokens() -> Iterator[Finding]:
    """Whether there are tokens, never what they are."""
    address = os.environ.get("RAY_ADDRESS")
    ray_token = os.environ.get("RAY_AUTH_TOKEN") or (Path.home() / ".ray" / "auth_token").is_file()
    where = f"joins {address}" if address else "starts on this machine when a run needs it"
    yield Finding("ray", "ok", f"{where}; token {'present' if ray_token else 'made when a cluster starts'}")
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    logged_in = os.environ.get("HF_TOKEN") or (home / "token").is_file()
    text = (
        "token present"
        if logged_in
        else "no token: gated models (Llama, Gemma) need HF_TOKEN or `hf auth login`"
    )
    yield Finding("hub", "ok" if logged_in else "note", text)
