"""The stub pipeline of tests/chaos for runs in a store: `python -m tests.integration.storage.stub_on_store`.

Each step of a trial is noted in the folder of STUB_LOG; steps and rows take long enough to be killed within.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray_jobs.stages import generate, train_worker, tune
from ray_jobs.stages.block_actor import TOKENS
from serving.engine.types import Request, Result
from serving.storage.node_cache import local_copy
from tests.chaos import stub_pipeline
from tests.chaos.stub_pipeline import digest, evaluation

STEP_S, ROW_S = 0.3, 0.7


def training(job: dict[str, Any], settings: Any, reports: Any, resume_from: str | None) -> None:
    trial = digest(job["training"])
    log = Path(os.environ["STUB_LOG"]) / f"{trial[:12]}.log"
    weights, start = trial, 0
    if resume_from:
        state = json.loads((Path(resume_from) / "adapter_model.safetensors").read_text())
        weights, start = state["weights"], state["step"]
    for step in range(start + 1, settings.num_steps + 1):
        time.sleep(STEP_S)
        weights = digest(weights, step)
        with log.open("a") as file:
            file.write(f"step {step}\n")
        if step % settings.eval_every_steps == 0:
            with tempfile.TemporaryDirectory() as folder:
                state = {"weights": weights, "step": step}
                Path(folder, "adapter_model.safetensors").write_text(json.dumps(state))
                Path(folder, "adapter_config.json").write_text("{}")
                reports.add(evaluation(weights, step), folder)
    with log.open("a") as file:
        file.write("finished\n")


def worker(job: dict[str, Any]) -> None:
    assert local_copy(job["train"]).is_file()
    train_worker.resumed(job, training)


class SlowEngine(stub_pipeline.StubEngine):
    def generate(self, requests: Sequence[Request]) -> list[Result]:
        time.sleep(ROW_S * len(requests))
        return super().generate(requests)

    def metrics(self) -> SimpleNamespace:
        return SimpleNamespace(**dict.fromkeys(TOKENS, 0))


class AnswerActor(generate.AnswerActor):
    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self.engine: Any = SlowEngine(local_copy(spec["model"]))


def put_stubs() -> None:
    stub_pipeline.put_stubs()
    tune.train_worker = worker
    generate.AnswerActor = AnswerActor


if __name__ == "__main__":
    # Workers find the stubs by the name of this module, not as __main__.
    from ray_jobs.command import main
    from tests.integration.storage import stub_on_store

    stub_on_store.put_stubs()
    sys.exit(main(None, sys.argv[1:]))
