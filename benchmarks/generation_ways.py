"""The ways to generate that `benchmarks.generation` compares: each opens a model, then does rounds."""

from __future__ import annotations

import asyncio
import atexit
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks.harness import own_cores
from benchmarks.http_load import closed_loop

CONTEXT_TOKENS = 768
NUM_CLIENTS = 16
START_LIMIT_S = 180.0
Counts = Mapping[str, float]
Round = Callable[[Sequence[str]], Counts]


def loop(model: Path, max_tokens: int, **options: Any) -> Round:
    """`Llama.create_chat_completion`, one prompt after another."""
    from llama_cpp import Llama

    llama = Llama(str(model), n_ctx=CONTEXT_TOKENS, verbose=False, **options)

    def work(prompts: Sequence[str]) -> Counts:
        count = 0
        for prompt in prompts:
            reply = llama.create_chat_completion(
                [{"role": "user", "content": prompt}], max_tokens=max_tokens, temperature=0.0
            )
            count += reply["usage"]["completion_tokens"]
        return {"tokens": count}

    return work


def pinned_loop(model: Path, max_tokens: int, rank: int) -> Round:
    """One of several such loops, each with a core of its own."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {rank})
    return loop(model, max_tokens, n_threads=1, n_threads_batch=1)


def llama_server(program: Path, model: Path, max_tokens: int) -> Round:
    """llama.cpp's own server with a slot for each of 16 clients, all cores and fused attention."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [str(program), "-m", str(model), "--port", str(port), "-np", str(NUM_CLIENTS), "-fa", "on"]
    command += ["-c", str(CONTEXT_TOKENS * NUM_CLIENTS), "-t", str(os.cpu_count() or 1), "--no-webui"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    atexit.register(server.kill)
    url = f"http://127.0.0.1:{port}"
    until_s = time.monotonic() + START_LIMIT_S
    while not _answers(f"{url}/health"):
        if server.poll() is not None or time.monotonic() > until_s:
            raise SystemExit(f"{program} does not start")
        time.sleep(0.2)

    def work(prompts: Sequence[str]) -> Counts:
        bodies = [
            {
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": max_tokens,
                "temperature": 0.0,
            }
            for prompt in prompts
        ]
        samples, _ = asyncio.run(closed_loop(f"{url}/v1/chat/completions", bodies, num_clients=NUM_CLIENTS))
        return {"tokens": sum(sample.num_tokens for sample in samples)}

    return work


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def engine(model: Path, max_tokens: int, slots: int, backend: Literal["llama_cpp", "openvino"]) -> Round:
    """All prompts at once to an engine that owns every core; llama.cpp has a lane on each."""
    from serving.engine import Engine, EngineSettings, Request, Sampling

    cores = os.cpu_count() or 1
    settings = EngineSettings(
        backend=backend,
        cores=cores,
        lanes=cores if backend == "llama_cpp" else 1,
        slots=slots,
        context_tokens=CONTEXT_TOKENS,
    )
    opened = Engine.open(model, settings, *own_cores(cores))
    sampling = Sampling(max_tokens=max_tokens)

    def work(prompts: Sequence[str]) -> Counts:
        before = opened.metrics()
        rendered = [opened.chat.render([{"role": "user", "content": prompt}]) for prompt in prompts]
        results = opened.generate([Request(str(i), prompt, sampling) for i, prompt in enumerate(rendered)])
        after = opened.metrics()
        return {
            "tokens": sum(result.num_answer_tokens for result in results),
            "prompt_tokens": sum(result.num_prompt_tokens for result in results),
            "cached_tokens": sum(result.num_cached_tokens for result in results),
            "compute_s": after.compute_s - before.compute_s,
            "busy_s": after.busy_s - before.busy_s,
        }

    return work


def bare_openvino(model: Path, max_tokens: int) -> Round:
    """OpenVINO GenAI's pipeline by itself, on token ids that the same template has made."""
    import numpy as np
    import openvino_genai
    from openvino import Tensor

    from serving.engine import Tokenizer

    tokenizer = Tokenizer.open(model)
    scheduling = openvino_genai.SchedulerConfig()
    scheduling.cache_size, scheduling.max_num_batched_tokens = 2, 512
    scheduling.dynamic_split_fuse = True
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        str(model), scheduling, "CPU", {"INFERENCE_NUM_THREADS": os.cpu_count() or 1}, {}
    )
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.stop_token_ids = max_tokens, set(tokenizer.end_tokens)

    def work(prompts: Sequence[str]) -> Counts:
        rendered = [tokenizer.chat.render([{"role": "user", "content": prompt}]) for prompt in prompts]
        inputs = [Tensor(np.array([prompt], dtype=np.int64)) for prompt in rendered]
        results = pipeline.generate(inputs, [config] * len(inputs))
        ends = tokenizer.end_tokens
        # The engine does not count the token that ends an answer.
        return {
            "tokens": sum(
                sum(token not in ends for token in result.m_generation_ids[0]) for result in results
            )
        }

    return work
