"""Every module can be imported where POSIX's own calls are absent, as on Windows.

The libraries are imported first, as they are on this machine; then the calls are taken away, the platform
is called Windows, and the project's modules are imported and asked for what they do instead.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WITHOUT_POSIX = r"""
import importlib, importlib.util, os, pkgutil, sys, types

import datasets, fastapi, llama_cpp, matplotlib, numpy, pandas, peft, pyarrow.parquet, ray, scipy.stats, torch
import torch.distributed, transformers, trl.experimental.orpo, typer, starlette.applications, yaml
import ray.data, ray.serve, ray.train.torch, ray.tune, ray.tune.search.optuna, ray.tune.schedulers
import flow_judge, jinja2.sandbox, matplotlib.pyplot, matplotlib.font_manager, mlflow, datasketch
import multiprocessing.connection, asyncio, concurrent.futures, subprocess, tempfile

for name in ("setsid", "setpgid", "killpg", "fork", "getuid", "geteuid", "register_at_fork", "getloadavg",
             "sched_setaffinity", "sched_getaffinity", "O_NOFOLLOW", "O_DIRECTORY", "sysconf", "nice"):
    delattr(os, name)
for name in ("fcntl", "resource", "pwd", "grp", "termios", "pty", "tty"):
    sys.modules[name] = None  # an import of it raises ImportError
sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, LK_UNLCK=0, locking=lambda *_: None)
sys.platform = "win32"

import ray_jobs, serving
names = [module.name for package in (ray_jobs, serving)
         for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
         if not module.name.endswith("__main__")]
names += [name for name in sys.argv[1:]]
if importlib.util.find_spec("triton") is None:  # it comes with torch for GPUs
    names.remove("ray_jobs.orpo.kernels_triton")
assert len(names) > 150, names
failed = {}
for name in names:
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = repr(error)
assert not failed, failed

from pathlib import Path
from ray_jobs.locks import owned
from ray_jobs.stages.cluster import usable_cpus
from serving.engine.cores import CoreLease, pin_this_thread
from serving.engine.topology import usable_cores
from serving.files import locked, write_whole

assert usable_cores() is None
assert usable_cpus() == (os.cpu_count() or 1)
lease = CoreLease.acquire(64)  # more than there are: nothing is pinned, nothing is refused
assert lease.cpus == ()
pin_this_thread((0,))
with owned(Path.cwd()), locked(Path("lock"), 1.0):
    write_whole(Path("file"), b"whole")
assert Path("file").read_bytes() == b"whole"

from ray_jobs.cli import machine
from serving.engine.topology import memory_bytes
assert memory_bytes()[0] is None
assert machine.num_cores() >= 1
print("imported", len(names))
"""


def test_every_module_is_importable_without_posix(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TRL_EXPERIMENTAL_SILENCE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.startswith("imported ")
