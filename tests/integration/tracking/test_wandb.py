"""A run folder in Weights & Biases, offline for real: the files it writes are read back, record by record."""

import struct
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.config import Config, load_config
from ray_jobs.locks import owned
from ray_jobs.runs import RunFolder, StageState, open_run
from ray_jobs.stages.trial_table import write_trials
from ray_jobs.tracking.publish import publish
from serving.storage.remote import Remote
from tests.integration.tracking.folders import REPORT, SMOKE, done, trial

BLOCK_BYTES = 32768


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    wandb = "tracking.wandb"
    return load_config(
        SMOKE, [f"{wandb}.project=p", f"{wandb}.mode=offline", f"{wandb}.registered_model=helper"]
    )


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "smoke")
    write_trials(folder.path("tune/trials.parquet"), [trial(1, 0.3), trial(2, 0.1, "failed")])
    folder.write_json("report/report.json", REPORT)
    folder.write("report/report.html", b"<html></html>")
    folder.write("config.yaml", b"mlflow_uri: http://bob:s3cret@host\n")
    folder.write_json("promoted.json", {"model": "candidate"})
    folder.write_json("models/candidate/manifest.json", {"sha256": "abc"})
    folder.write("models/candidate/model.gguf", b"GGUF")
    for stage in ("tune", "verdict", "promote"):
        done(folder, stage)
    return folder


def records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: LevelDB's log format after a head of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = BLOCK_BYTES - at % BLOCK_BYTES
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def runs(folder: RunFolder) -> dict[str, list[Any]]:
    """Name of a run in W&B -> its records, of all files that have it."""
    found: dict[str, list[Any]] = {}
    for path in sorted(folder.root.glob("wandb/offline-run-*/*.wandb")):
        rows = list(records(path))
        name = next(row.run.display_name for row in rows if row.WhichOneof("record_type") == "run")
        found.setdefault(name, []).extend(rows)
    return found


def of_kind(rows: list[Any], kind: str) -> list[Any]:
    return [getattr(row, kind) for row in rows if row.WhichOneof("record_type") == kind]


def summary(rows: list[Any]) -> dict[str, str]:
    return {
        item.key or item.nested_key[0]: item.value_json
        for one in of_kind(rows, "summary")
        for item in one.update
    }


@pytest.mark.usefixtures("config")
class TestOffline:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("wandb", reason="the extra `wandb` is not installed")

    def test_trials_figures_files_and_the_champion_are_kept(self, config: Config, folder: RunFolder) -> None:
        publish(config, folder)
        found = runs(folder)
        assert set(found) == {"smoke", "smoke/trial-001", "smoke/trial-002"}
        (whole,) = of_kind(found["smoke"], "run")
        assert (whole.project, whole.run_group, whole.job_type) == ("p", "smoke", "run")
        settings = {item.key: item.value_json for item in whole.config.update}
        assert settings["training.num_steps"] == f'"{config.training.num_steps}"'
        figures = summary(found["smoke"])
        assert figures["decision"] == '"promote"'
        assert float(figures["mean_difference"]) == 0.5
        assert float(figures["ci95_high"]) == 0.75
        assert figures["best_trial"] == '"trial-001"'
        artifacts = {one.name: one for one in of_kind(found["smoke"], "artifact")}
        assert set(artifacts) == {"smoke-report", "helper"}
        held = {entry.path for entry in artifacts["smoke-report"].manifest.contents}
        assert held == {"report/report.json", "report/report.html", "config.yaml"}
        assert "champion" in artifacts["helper"].aliases
        assert '"sha256":"abc"' in artifacts["helper"].metadata.replace(" ", "")
        (entry,) = artifacts["helper"].manifest.contents
        assert entry.ref == folder.path("models/candidate/model.gguf").resolve().as_uri()
        curve = [
            {item.key or item.nested_key[0]: item.value_json for item in row.item}
            for row in of_kind(found["smoke/trial-001"], "history")
        ]
        assert [(float(row["_step"]), float(row["heldout_nll"])) for row in curve] == [
            (3, 0.3 + 1 / 3),
            (6, 0.3 + 1 / 6),
        ]
        ends = {name: of_kind(rows, "exit")[-1].exit_code for name, rows in found.items()}
        assert ends == {"smoke": 0, "smoke/trial-001": 0, "smoke/trial-002": 1}

    def test_runs_of_a_run_in_a_store_are_kept_there(
        self, config: Config, folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What a command brings to this node, or takes away from it, leaves them alone."""
        monkeypatch.setenv("ORPO_CACHE", str(tmp_path / "node"))
        store = Remote(f"memory://bucket-{uuid.uuid4().hex}/runs/smoke")
        for path in (path for path in folder.root.rglob("*") if path.is_file()):
            (store / path.relative_to(folder.root).as_posix()).upload(path)
        mine = open_run(store.uri.rpartition("/")[0], "smoke")
        with owned(mine.root):
            publish(config, mine)
        files = mine.root.glob("wandb/offline-run-*/*.wandb")
        kept = {path.relative_to(mine.root).as_posix() for path in files}
        assert len(kept) == 3
        assert kept < store.listing().keys()
        with owned(mine.root):
            publish(config, mine)
        assert len(runs(mine)) == 3
        monkeypatch.setenv("ORPO_CACHE", str(tmp_path / "another"))
        other = open_run(store.uri.rpartition("/")[0], "smoke")
        with owned(other.root):
            publish(config, other)
        assert not other.path("wandb").exists(), "nothing is new, and they are sent from the store"
        assert kept < store.listing().keys()

    def test_a_second_time_tells_only_what_is_new(self, config: Config, folder: RunFolder) -> None:
        publish(config, folder)
        before = sorted(folder.root.glob("wandb/offline-run-*"))
        publish(config, folder)
        assert sorted(folder.root.glob("wandb/offline-run-*")) == before
        folder.write_json("report/report.json", {**REPORT, "decision": "keep_base"})
        folder.set_state("verdict", StageState("done", "other", {}, {}, "", "", 1.0))
        publish(config, folder)
        (new,) = set(folder.root.glob("wandb/offline-run-*")) - set(before)
        rows = list(records(next(new.glob("*.wandb"))))
        assert summary(rows)["decision"] == '"keep_base"'
        ids = {path.stem for path in folder.root.glob("wandb/offline-run-*/run-*.wandb")}
        assert len(ids) == 3, "the run itself goes on, the trials are not told again"

    def test_results_of_other_settings_are_another_run(self, config: Config, folder: RunFolder) -> None:
        publish(config, folder)
        before = set(folder.root.glob("wandb/offline-run-*/*.wandb"))
        folder.set_state("verdict", StageState("done", "other", {}, {}, "", "", 1.0))
        publish(config.model_copy(update={"seed": 9}), folder)
        new = set(folder.root.glob("wandb/offline-run-*/*.wandb")) - before
        assert len(new) == 3
        assert not {path.name for path in new} & {path.name for path in before}
        seeds = [item.value_json for path in new for row in of_kind(list(records(path)), "run")
                 for item in row.config.update if item.key == "seed"]  # fmt: skip
        assert seeds == ['"9"']

    def test_without_a_key_a_run_that_would_go_online_is_a_warning(
        self, config: Config, folder: RunFolder, caplog: pytest.LogCaptureFixture
    ) -> None:
        online = load_config(SMOKE, ["tracking.wandb.project=p"])
        publish(online, folder)
        assert "tracking wandb p: has no API key: set WANDB_API_KEY" in caplog.text
        assert not folder.path("tracking.json").exists()
        assert not folder.path("wandb").exists()


def test_without_the_package_the_extra_is_named(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    publish(config, folder)
    assert "tracking wandb p: needs pip install 'orpo-on-ray[wandb]'" in caplog.text
    assert not folder.path("tracking.json").exists()
