"""What this machine is and how fast its parts are, found without a cluster."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

GB = 1e9


def num_cores() -> int:
    """Physical cores that this process may use, its control group's quota counted in."""
    from serving.engine.topology import usable_cores

    cores = usable_cores()
    return len(cores) if cores else os.cpu_count() or 1


def copy_rate(threads: int, size: int = 1 << 26, repeats: int = 4) -> float:
    """Bytes per second read and written by all cores together: STREAM's copy, the best of a few."""
    import numpy as np

    arrays = [(np.ones(size // 8), np.empty(size // 8)) for _ in range(threads)]
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            started = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), arrays))
            best = min(best, time.perf_counter() - started)
    return 2 * size * threads / best


@dataclass(frozen=True)
class EngineRate:
    """Tokens per second of the engine with the bundled model, many requests together."""

    prompt_tokens_per_s: float
    answer_tokens_per_s: float
    num_weights: float


SMOLLM2_WEIGHTS = 134.5e6


def engine_rate() -> EngineRate:
    """Measured in Q4_0, as runs export models by default, with 16 requests of 96 prompt and 32 answer tokens.

    Raises ModelError where the bundled model is not installed, EngineError where no core is free.
    """
    from ray_jobs.export.base import BUNDLED, default_cache_dir, resolve_gguf
    from serving.engine.calibrate import FULL, measure
    from serving.engine.llamacpp.quantize import quantize

    model = resolve_gguf(next(iter(BUNDLED)), None, default_cache_dir())
    with tempfile.TemporaryDirectory() as folder:
        file = quantize(model, Path(folder) / "q4_0.gguf", "q4_0", num_threads=num_cores())
        trial = measure(file, "q4_0", "llama_cpp", 1, 16)
    each_s = FULL.answer_tokens / trial.answer_tokens_per_s - FULL.prompt_tokens / trial.prompt_tokens_per_s
    answers = FULL.answer_tokens / each_s if each_s > 0 else trial.answer_tokens_per_s
    return EngineRate(trial.prompt_tokens_per_s, answers, SMOLLM2_WEIGHTS)


def matrix_rate() -> tuple[float, str]:
    """Operations per second of a large matrix product in the type that training would use, and the type."""
    import torch

    from ray_jobs.orpo.flops import matrix_rate as measured
    from ray_jobs.orpo.models import training_device, uses_bf16
    from ray_jobs.orpo.settings import TrainingSettings

    device = training_device()
    dtype = torch.bfloat16 if uses_bf16(TrainingSettings(), device) else torch.float32
    if device.type == "cpu":
        torch.set_num_threads(num_cores())
    return measured(device, dtype), f"{str(dtype).removeprefix('torch.')} on {device.type}"


def gpus() -> list[str]:
    """Names and memory of NVIDIA GPUs, as their driver tells."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def gpu_memory_bytes(names: list[str]) -> float | None:
    """Memory of the smallest GPU among lines such as `NVIDIA L4, 23034 MiB`; None without GPUs."""
    sizes = [float(line.rsplit(",", 1)[1].split()[0]) * 2**20 for line in names if line.endswith("MiB")]
    return min(sizes, default=None)


def compiler() -> str | None:
    """The C++ compiler that a build of the engine would find."""
    named = os.environ.get("CXX")
    candidates = [named] if named else ["c++", "g++", "clang++", *(["cl"] if sys.platform == "win32" else [])]
    for name in candidates:
        if name and (found := shutil.which(name)):
            return found
    return None


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_features() -> list[str]:
    """Instruction sets that matter to the engine, as Linux names them; elsewhere nothing is known."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    known = (
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "avx_vnni",
        "amx_int8",
        "amx_bf16",
        "asimd",
        "i8mm",
    )
    lines = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
    present = set(lines[0].split()) if lines else set()
    return [name for name in known if name in present]


def existing_parent(folder: Path) -> Path:
    """The folder itself or the nearest one above it that is there."""
    folder = folder.expanduser().absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def system() -> str:
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
