"""flow-judge's llamafile backend, with an executable that serves as a llamafile does."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from ray_jobs.errors import ConfigError
from ray_jobs.judging.flow_models import FlowJudgeBackend
from ray_jobs.judging.judge import Judge
from ray_jobs.judging.models import open_remote
from ray_jobs.judging.settings import JudgeSettings
from tests.unit.judging.fakes import item

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a script that is executed")

SERVER = """#!{python}
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
with open({starts!r}, "a") as starts:
    starts.write(json.dumps(sys.argv[1:]) + "\\n")

class Handler(BaseHTTPRequestHandler):
    def answer(self, reply):
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer({{"object": "list", "data": []}})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = asked["messages"][0]["content"]
        score = 5 if "right" in prompt.split("<output>")[1] else 2
        text = f"<feedback>\\nSo it is.\\n</feedback>\\n<score>\\n{{score}}\\n</score>"
        message = {{"role": "assistant", "content": text}}
        choice = {{"index": 0, "finish_reason": "stop", "message": message}}
        self.answer({{"id": "1", "object": "chat.completion", "created": 0, "model": "m",
                      "choices": [choice]}})

    def log_message(self, *_):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def settings(model: Path | str) -> JudgeSettings:
    return JudgeSettings(model=str(model), backend="llamafile", context_tokens=4096, max_feedback_tokens=100)


def test_callers_share_one_server_with_the_engines_cores(tmp_path: Path) -> None:
    path, starts = tmp_path / "a judge's.llamafile", tmp_path / "starts.jsonl"
    path.write_text(SERVER.format(python=sys.executable, starts=str(starts)))
    path.chmod(0o755)
    backend = open_remote(settings(path), cores=3)
    assert isinstance(backend, FlowJudgeBackend)
    try:
        judge = Judge(backend, settings(path), "RESPONSE_CORRECTNESS_5POINT")
        batches = [[item(f"{name} a", "right"), item(f"{name} b", "wrong")] for name in range(4)]
        with ThreadPoolExecutor(4) as pool:
            judged = [one for batch in pool.map(judge.judge, batches) for one in batch]
        assert [one.score for one in judged] == [5, 2] * 4
        assert {one.feedback for one in judged} == {"So it is."}
        (arguments,) = [json.loads(line) for line in starts.read_text().splitlines()]
        told = dict(pairwise(arguments))
        assert (told["--threads"], told["-c"], told["-n"]) == ("3", "4096", "132")
    finally:
        backend._model.cleanup()


def test_the_judge_is_known_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "judge.llamafile"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    before = open_remote(settings(path)).sha256
    path.write_text("#!/bin/sh\nexit 1\n")
    os.utime(path, (1, 1))
    assert open_remote(settings(path)).sha256 != before


@pytest.mark.parametrize("name", ["absent.llamafile", "not-executable.llamafile"])
def test_what_cannot_be_run_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "not-executable.llamafile").write_text("")
    with pytest.raises(ConfigError, match=f"judge.model: .*{name}: backend: llamafile wants an executable"):
        open_remote(settings(tmp_path / name))
