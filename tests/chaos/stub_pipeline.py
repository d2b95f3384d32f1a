"""The pipeline with stubs for everything that needs a model: `python -m tests.chaos.stub_pipeline CONFIG …`

The stubs' results follow from their inputs alone, step by step, so that a step left out, done twice or taken
up from the wrong place changes them. The Ray parts, the stages and the files are the real ones.
"""

import dataclasses
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray_jobs.config import Config
from ray_jobs.judging.backend import Call, Completion, OnDone
from ray_jobs.judging.settings import JudgeSettings
from ray_jobs.runs import RunFolder, file_sha256, write_whole
from ray_jobs.stages import export, generate, judge, prepare, train_worker, tune
from ray_jobs.stages.block_actor import TOKENS
from serving.engine.settings import EngineSettings
from serving.engine.types import Request, Result

STEP_S = 0.3
ROW_S = 0.01
MODEL_S = 0.5


def digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def stub_training(job: dict[str, Any], settings: Any, reports: Any, resume_from: str | None) -> None:
    """A chain of hashes for weights; a line a step in the run folder's `chaos/`."""
    trial = digest(job["training"])
    log = Path(job["train"]).parents[1] / "chaos" / f"{trial[:12]}.log"
    log.parent.mkdir(exist_ok=True)
    weights, start = trial, 0
    if resume_from:
        state = json.loads((Path(resume_from) / "adapter_model.safetensors").read_text())
        weights, start = state["weights"], state["step"]
    for step in range(start + 1, settings.num_steps + 1):
        time.sleep(STEP_S)
        weights = digest(weights, step)
        with log.open("a") as file:
            file.write(f"step {step}\n")
        if step % settings.eval_every_steps == 0 or step == settings.num_steps:
            with tempfile.TemporaryDirectory() as folder:
                state = {"weights": weights, "step": step}
                Path(folder, "adapter_model.safetensors").write_text(json.dumps(state))
                Path(folder, "adapter_config.json").write_text("{}")
                reports.add(evaluation(weights, step), folder)
    with log.open("a") as file:
        file.write("finished\n")


def evaluation(weights: str, step: int) -> dict[str, Any]:
    value = int(weights[:6], 16) / 16**6
    names = ("heldout_accuracy", "heldout_nll", "heldout_loss", "heldout_margin", "train_loss")
    return {"step": step, "tokens_per_s": 1.0, **dict.fromkeys(names, value)}


def stub_train_worker(job: dict[str, Any]) -> None:
    train_worker.resumed(job, stub_training)


def manifest(model: Path) -> dict[str, Any]:
    """What later stages and the model card read of one."""
    parity = {"identical": 0, "tokens": 0, "near_ties": 0, "max_relative_logit_error": 0.0}
    return {
        "sha256": file_sha256(model),
        "bytes": model.stat().st_size,
        "base": {"revision": None},
        "recipe": {"quantization": "stub"},
        "parity": parity,
    }


def stub_export(config: Config, folder: RunFolder) -> list[str]:
    outputs = []
    for model in generate.MODELS:
        source = folder.path("tune/best/adapter_model.safetensors" if model == "candidate" else "config.yaml")
        weights = source.read_bytes() if model == "candidate" else b"base"
        time.sleep(MODEL_S)
        path = folder.path("models", model, "model.gguf")
        write_whole(path, b"GGUF" + weights)
        folder.write_json(f"models/{model}/manifest.json", manifest(path))
        outputs += [f"models/{model}/model.gguf", f"models/{model}/manifest.json"]
    return outputs


class StubEngine:
    """Answers that follow from the model's bytes and the prompt."""

    def __init__(self, model: Path) -> None:
        time.sleep(MODEL_S)
        self._model = file_sha256(model)
        self.chat = self
        self.settings = EngineSettings()

    def render(self, messages: list[dict[str, str]]) -> list[int]:
        return list(digest(messages).encode())

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        time.sleep(ROW_S * len(requests))
        return [self._answer(request) for request in requests]

    def metrics(self) -> SimpleNamespace:
        return SimpleNamespace(**dict.fromkeys(TOKENS, 0))

    def _answer(self, request: Request) -> Result:
        text = digest(self._model, request.prompt, request.sampling.seed)
        return Result(request.id, text, (1,), "stop", len(request.prompt), 0, 1, 0.01, 0.01)


class StubAnswerActor(generate.AnswerActor):
    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self.engine: Any = StubEngine(Path(spec["model"]))


class StubJudge:
    """Scores that follow from the judge's prompt."""

    sha256 = "f" * 64
    fingerprint = ""
    tokenizes = True

    def complete(self, calls: Sequence[Call], scores: Sequence[int], on_done: OnDone) -> list[Completion]:
        time.sleep(ROW_S * len(calls))
        done = []
        for call in calls:
            score = scores[int(digest(call.prompt)[:4], 16) % len(scores)]
            text = f"<feedback>\nSo.\n</feedback>\n<score>\n{score}\n</score>"
            done.append(Completion(call.id, text, "stop", 0.01))
            on_done(done[-1])
        return done

    def num_prompt_tokens(self, prompt: str) -> int | None:
        return len(prompt.split())


class StubJudgeActor(judge.JudgeActor):
    def __init__(self, spec: dict[str, Any]) -> None:
        time.sleep(MODEL_S)
        self._settings = JudgeSettings.model_validate_json(spec["judge"])
        self._seed = spec["seed"]
        self.engine = None
        self._backend = StubJudge()


def put_stubs() -> None:
    import ray_jobs.data.forecast as forecast
    import ray_jobs.export.base as base
    import serving.promote as promotion

    nowhere = Path("nowhere")
    base.resolve_base = lambda *_: SimpleNamespace(
        name="stub", sha256=digest("stub"), gguf=nowhere, hf_dir=nowhere
    )
    forecast.load_tokenizer = lambda *_: None
    prepare.check_judging = lambda *_: None
    tune.check_export_memory = lambda _: None
    tune.train_worker = stub_train_worker
    generate.AnswerActor = StubAnswerActor
    judge.JudgeActor = StubJudgeActor
    promotion.first_words = lambda _: b"{}"
    export.STAGE = dataclasses.replace(export.STAGE, run=stub_export)


if __name__ == "__main__":
    # Workers find the stubs by the name of this module, not as __main__.
    from ray_jobs.command import main
    from tests.chaos import stub_pipeline

    stub_pipeline.put_stubs()
    sys.exit(main(None, sys.argv[1:]))
