"""What a hub refuses, by the hub's own client against a server that answers as the hub does."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ASK = """
import json, sys, tempfile
from pathlib import Path
from ray_jobs.data.hub import with_commit
from ray_jobs.data.load import load_pairs
from ray_jobs.data.settings import Source
from ray_jobs.errors import UserError
from ray_jobs.export.hub import commit_of, download_file, download_model
from ray_jobs.export.push import FILES, push

folder = Path(tempfile.mkdtemp())
for name in FILES:
    (folder / name).write_text("x")
said = {}
def ask(what, call):
    try:
        said[what] = str(call())
    except UserError as error:
        said[what] = str(error)
for repo in sys.argv[2:]:
    ask(f"commit {repo}", lambda: with_commit(Source(source=f"owner/{repo}")).revision)
    ask(f"model {repo}", lambda: commit_of(download_model(f"owner/{repo}", "v9", folder)))
    if sys.argv[1] == "up":  # what is asked with patience where nobody answers
        ask(f"file {repo}", lambda: download_file(f"owner/{repo}", "m.gguf", "v9").name)
        ask(f"data {repo}", lambda: load_pairs(Source(source=f"owner/{repo}"), 0).num_rows_in)
    ask(f"push {repo}", lambda: push(folder, f"owner/{repo}", private=False))
print(json.dumps(said))
"""
ERRORS = {
    "gated": (403, {"X-Error-Code": "GatedRepo"}),
    "absent": (404, {"X-Error-Code": "RepoNotFound"}),
    "unpinned": (404, {"X-Error-Code": "RevisionNotFound"}),
    "login": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "forbidden": (403, {}),
}
"""Repository -> status and headers of every answer about it, as the hub gives them."""


class Hub(BaseHTTPRequestHandler):
    """Knows the repositories of ERRORS, and `whole`, which holds one config file."""

    def answer(self) -> None:
        repo = next((name for name in (*ERRORS, "whole") if f"owner/{name}" in self.path), "absent")
        if repo != "whole":
            status, headers = ERRORS[repo]
            self._send(status, headers, b'{"error": "refused"}')
        elif "/tree/" in self.path:
            entry = {"type": "file", "path": "config.json", "size": 2, "oid": "abc"}
            self._send(200, {}, json.dumps([entry]).encode())
        elif "/resolve/" not in self.path:
            files = [{"rfilename": "config.json", "size": 2}]
            self._send(200, {}, json.dumps({"id": "owner/whole", "sha": COMMIT, "siblings": files}).encode())
        elif self.path.endswith("config.json"):
            self._send(200, {"ETag": '"abc"', "X-Repo-Commit": COMMIT}, b"{}")
        else:
            self._send(404, {"X-Error-Code": "EntryNotFound"}, b"")

    do_GET = do_HEAD = do_POST = answer

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def said(endpoint: str, home: Path, *repos: str, token: str = "", state: str = "up") -> dict[str, str]:
    """What is said to a user who asks for each repository."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = kept | {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", ASK, state, *repos],
        env=environment | ({"HF_TOKEN": token} if token else {}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, str] = json.loads(done.stdout)
    assert all("\n" not in line for line in found.values())
    return found


def test_each_refusal_is_one_line_that_says_what_to_do(hub: str, tmp_path: Path) -> None:
    found = said(hub, tmp_path, *ERRORS, "whole")
    licence = "is gated: accept its licence on the hub and log in with `hf auth login` or HF_TOKEN"
    nowhere = "no such hub repository or local path, or it is private and needs HF_TOKEN"
    login = "needs a login: `hf auth login`, or HF_TOKEN on every node"
    assert found["model gated"] == f"owner/gated: {licence}"
    assert found["file gated"] == f"owner/gated:m.gguf: {licence}"
    assert found["data gated"] == f"owner/gated: {licence}"
    assert found["model absent"] == f"owner/absent: {nowhere}"
    assert found["file absent"] == f"owner/absent:m.gguf: {nowhere}"
    assert found["data absent"].startswith("owner/absent: no such file here, and no such data set on the hub")
    assert found["model unpinned"] == "owner/unpinned: has no revision 'v9'"
    assert found["model login"] == f"owner/login: {login}"
    assert found["data login"] == f"owner/login: {login}"
    assert found["model whole"] == found["commit whole"] == COMMIT
    assert found["commit gated"] == found["commit absent"] == "None"
    assert found["file whole"] == "owner/whole:m.gguf: no such file in the hub repository"
    for repo in (*ERRORS, "whole"):
        assert found[f"push {repo}"].startswith(f"owner/{repo}: ")


def test_with_a_token_it_is_the_account_that_has_no_right(hub: str, tmp_path: Path) -> None:
    found = said(hub, tmp_path, "gated", "login", "forbidden", token="hf_secret")
    assert found["model gated"].endswith("with the account of the token that is set")
    assert found["data gated"] == found["model gated"]
    assert found["model login"].startswith("owner/login: the hub does not take the token that is set: ")
    assert found["model forbidden"].endswith(", and the account of the token that is set may not read it")
    assert found["data forbidden"] == "owner/forbidden: the account of the token that is set may not read it"
    assert "hf_secret" not in json.dumps(found)


def test_a_hub_that_does_not_answer_is_told_as_that(tmp_path: Path) -> None:
    found = said("http://127.0.0.1:9", tmp_path, "whole", state="down")
    assert found["model whole"].endswith("is not in the local cache, and the hub cannot be reached")
    assert found["push whole"].startswith("owner/whole: cannot be pushed to: ")
    assert found["commit whole"] == "None"
