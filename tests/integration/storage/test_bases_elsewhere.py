"""Bases that lie in an S3 store or on a hub: fetched as they are, and whole runs on them."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ray_jobs.errors import ModelError
from ray_jobs.export.base import resolve_base, resolve_gguf
from ray_jobs.export.settings import ModelSettings
from serving.files import sha256_of
from serving.storage.remote import Remote
from tests.integration.export.export_tiny_models import make_model

ROOT = Path(__file__).parents[3]
MODELS = "s3://bucket/models"
COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
HUB_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
LIMIT_S = 600


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return resolve_gguf("bundled:smollm2-135m-instruct", None, tmp_path_factory.mktemp("cache"))
    except ModelError as error:
        pytest.skip(str(error))


@pytest.fixture
def hub(gguf: Path) -> Iterator[str]:
    """A hub with one repository, `owner/smollm2`, at one commit, which holds one file."""
    sha256 = sha256_of(gguf)

    class Hub(BaseHTTPRequestHandler):
        def answer(self) -> None:
            known = self.path in (
                f"/owner/smollm2/resolve/{revision}/{HUB_FILE}" for revision in ("v1", COMMIT)
            )
            self.send_response(200 if known else 404)
            if known:
                self.send_header("ETag", f'"{sha256}"')
                self.send_header("X-Repo-Commit", COMMIT)
            else:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", str(gguf.stat().st_size if known else 0))
            self.end_headers()
            if known and self.command == "GET":
                with gguf.open("rb") as file:
                    while chunk := file.read(1 << 20):
                        self.wfile.write(chunk)

        do_GET = do_HEAD = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_folder_and_a_file_of_a_store_are_fetched_whole(
    node: dict[str, str], gguf: Path, tmp_path: Path
) -> None:
    assert node["AWS_ENDPOINT_URL"]
    folder = make_model("qwen2.5", tmp_path / "model")
    for path in sorted(folder.iterdir()):
        (Remote(f"{MODELS}/qwen") / path.name).upload(path)
    Remote(f"{MODELS}/small.gguf").upload(gguf)
    cache = tmp_path / "cache"

    found = resolve_base(ModelSettings(base=f"{MODELS}/qwen"), cache)
    here = resolve_base(ModelSettings(base=str(folder)), cache)
    assert (found.name, found.sha256) == (f"{MODELS}/qwen", here.sha256)
    names = sorted(path.name for path in folder.iterdir())
    assert sorted(path.name for path in found.hf_dir.iterdir()) == names
    assert all(sha256_of(found.hf_dir / name) == sha256_of(folder / name) for name in names)

    base = resolve_base(ModelSettings(base=f"{MODELS}/small.gguf"), cache)
    assert base.sha256 == sha256_of(base.gguf) == sha256_of(gguf)
    assert (base.hf_dir / "model.safetensors").is_file()


def whole_run(base: str, environment: dict[str, str], storage: Path, *more: str) -> Path:
    """The folder of a real run, small in every number, on the base."""
    changes = [f"model.base={base}", f"storage={storage}", f"registry={storage}/registry", *more]
    sets = [part for change in changes for part in ("--set", change)]
    kept = {name: value for name, value in environment.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "ray_jobs.pipeline", "configs/smoke.yaml", *sets],
        env=kept | {"JUDGEMENT_CACHE": str(storage / "cache.sqlite"), "ORPO_CACHE": str(storage / "cache")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return storage / "smoke"


def base_of(run: Path) -> dict[str, object]:
    """What the run's manifest says of its base; the run has come to its verdict."""
    assert json.loads((run / "report/report.json").read_text())["decision"]
    found: dict[str, object] = json.loads((run / "models/candidate/manifest.json").read_text())["base"]
    return found


@pytest.mark.long
def test_a_whole_run_on_a_base_in_a_store(node: dict[str, str], gguf: Path, tmp_path: Path) -> None:
    uri = f"{MODELS}/base.gguf"
    Remote(uri).upload(gguf)
    base = base_of(whole_run(uri, node, tmp_path / "runs"))
    assert base == {"name": uri, "revision": None, "sha256": sha256_of(gguf)}


@pytest.mark.long
def test_a_whole_run_on_a_gguf_of_the_hub(hub: str, gguf: Path, tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = kept | {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hf")}
    spec = f"owner/smollm2:{HUB_FILE}"
    base = base_of(whole_run(spec, environment, tmp_path / "runs", "model.revision=v1"))
    assert base == {"name": spec, "revision": COMMIT, "sha256": sha256_of(gguf)}
    cached = tmp_path / "hf/hub/models--owner--smollm2/snapshots" / COMMIT / HUB_FILE
    assert sha256_of(cached) == sha256_of(gguf)
