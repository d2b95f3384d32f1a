"""A run folder in a real MLflow store: what it holds arrives, once; a broken tracker breaks nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.config import Config, load_config
from ray_jobs.errors import ConfigError
from ray_jobs.runs import RunFolder
from ray_jobs.stages.trial_table import write_trials
from ray_jobs.tracking.figures import flat_params
from ray_jobs.tracking.publish import publish
from tests.integration.tracking.folders import REPORT, SMOKE, done, trial

mlflow = pytest.importorskip("mlflow", reason="the extra `tracking` is not installed")


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)  # where artefacts of a store without a server lie
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def config(uri: str) -> Config:
    return load_config(SMOKE, [f"tracking.mlflow_uri={uri}", "tracking.registered_model=helper"])


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "smoke")
    write_trials(folder.path("tune/trials.parquet"), [trial(1, 0.3), trial(2, 0.2), trial(3, 0.1, "failed")])
    folder.write_json("report/report.json", REPORT)
    folder.write("report/report.html", b"<html></html>")
    folder.write("config.yaml", b"name: smoke\n")
    folder.write_json("promoted.json", {"model": "candidate"})
    folder.write_json("models/candidate/manifest.json", {"sha256": "abc"})
    for stage in ("tune", "verdict", "promote"):
        done(folder, stage)
    return folder


def runs(uri: str) -> tuple[Any, dict[str, Any]]:
    """The parent run, and the nested ones by name."""
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("orpo-on-ray")
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    return found.pop("smoke"), found


def test_trials_figures_files_and_the_champion_arrive(config: Config, folder: RunFolder, uri: str) -> None:
    publish(config, folder)
    parent, nested = runs(uri)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["decision"] == "promote"
    assert parent.data.metrics["mean_difference"] == 0.5
    assert (parent.data.metrics["ci95_low"], parent.data.metrics["ci95_high"]) == (0.25, 0.75)
    assert parent.data.metrics["candidate_mean_score"] == 3.5
    assert parent.data.params["training.num_steps"] == str(config.training.num_steps)
    assert set(nested) == {f"smoke/trial-00{number}" for number in (1, 2, 3)}
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    first = nested["smoke/trial-001"]
    assert first.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert first.data.params == {"beta": "0.1"}
    history = client.get_metric_history(first.info.run_id, "heldout_nll")
    assert {point.step: point.value for point in history} == {3: 0.3 + 1 / 3, 6: 0.3 + 1 / 6}
    assert nested["smoke/trial-003"].info.status == "FAILED"
    bests = [name for name, run in nested.items() if run.data.tags["best"] == "true"]
    assert bests == ["smoke/trial-001"]  # the objective of smoke.yaml is accuracy; a failed trial never wins
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} == {"config.yaml", "report"}
    version = client.get_model_version_by_alias("helper", "champion")
    assert version.run_id == parent.info.run_id
    assert version.tags["sha256"] == "abc"
    assert version.source == folder.path("models", "candidate").resolve().as_uri()


def test_a_second_time_tells_only_what_is_new(config: Config, folder: RunFolder, uri: str) -> None:
    publish(config, folder)
    publish(config, folder)
    assert len(runs(uri)[1]) == 3
    folder.write_json("report/report.json", {**REPORT, "decision": "keep_base"})
    done(folder, "verdict", "other")
    publish(config, folder)
    parent, nested = runs(uri)
    assert parent.data.tags["decision"] == "keep_base"
    assert len(nested) == 3
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    assert len(client.search_model_versions("name='helper'")) == 1


WRITES = (
    "create_run", "log_batch", "set_terminated", "set_tag", "log_artifact", "log_text",
    "create_registered_model", "create_model_version", "set_registered_model_alias",
)  # fmt: skip


class Leaving:
    """A server that does one call more of each command, and whose last reply of it never comes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        for name in WRITES:
            call = getattr(mlflow.MlflowClient, name)
            monkeypatch.setattr(mlflow.MlflowClient, name, self._cut(call))

    def _cut(self, call: Any) -> Any:
        def leaving(*given: Any, **named: Any) -> Any:
            result = call(*given, **named)
            self.left -= 1
            if self.left == 0:
                raise ConnectionError("the reply is lost")
            return result

        return leaving


def test_a_server_that_drops_out_again_and_again_is_told_each_thing_once(
    config: Config,
    folder: RunFolder,
    uri: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server, commands = Leaving(monkeypatch), 0
    while commands == 0 or "the reply is lost" in caplog.text:
        caplog.clear()
        commands += 1
        server.left = commands
        publish(config, folder)
    assert commands > 5
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.get_experiment_by_name("orpo-on-ray").experiment_id
    assert len(client.search_runs([experiment])) == 4
    parent, nested = runs(uri)
    assert {name: run.info.status for name, run in nested.items()} == {
        "smoke/trial-001": "FINISHED", "smoke/trial-002": "FINISHED", "smoke/trial-003": "FAILED",
    }  # fmt: skip
    for number, run in enumerate(sorted(nested.values(), key=lambda run: run.info.run_name), start=1):
        assert run.data.params == {"beta": str(0.1 * number)}
        history = client.get_metric_history(run.info.run_id, "heldout_nll")
        assert sorted(point.step for point in history) == [3, 6]
    assert parent.info.status == "FINISHED"
    assert parent.data.params["judge.model"] == config.judge.model
    assert len(client.search_model_versions("name='helper'")) == 1
    assert str(client.get_model_version_by_alias("helper", "champion").version) == "1"


def test_results_of_other_settings_are_another_run(config: Config, folder: RunFolder, uri: str) -> None:
    publish(config, folder)
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    first = runs(uri)[0].info.run_id
    changed = config.model_copy(update={"judge": config.judge.model_copy(update={"model": "other.gguf"})})
    publish(changed, folder)
    experiment = client.get_experiment_by_name("orpo-on-ray").experiment_id
    assert len(client.search_runs([experiment])) == 4, "nothing was found under the new settings yet"
    folder.write_json("report/report.json", {**REPORT, "decision": "keep_base"})
    done(folder, "verdict", "other")
    publish(changed, folder)
    publish(changed, folder)
    found = {run.info.run_id: run.data for run in client.search_runs([experiment])}
    (second,) = [name for name, data in found.items() if "decision" in data.tags and name != first]
    for run, decision, judge in ((first, "promote", config.judge.model), (second, "keep_base", "other.gguf")):
        assert (found[run].tags["decision"], found[run].params["judge.model"]) == (decision, judge)
    assert found[first].tags["superseded"] == "true"
    assert "superseded" not in found[second].tags
    parents = [data.tags["mlflow.parentRunId"] for data in found.values() if "best" in data.tags]
    assert sorted(parents) == sorted([first, second] * 3)


def test_no_password_leaves_the_machine(
    config: Config, folder: RunFolder, caplog: pytest.LogCaptureFixture, tmp_path: Path, uri: str
) -> None:
    secret = load_config(
        SMOKE, ["tracking.mlflow_uri=http://bob:s3cret@127.0.0.1:9", "storage=s3://k:s3cret@b"]
    )
    assert flat_params(secret)["tracking.mlflow_uri"] == "http://bob:***@127.0.0.1:9"
    assert "s3cret" not in str(flat_params(secret))
    publish(load_config(SMOKE, ["tracking.mlflow_uri=nosuch://bob:s3cret@host"]), folder)
    assert "tracking mlflow nosuch://bob:***@host: " in caplog.text
    assert "s3cret" not in caplog.text
    folder.write("config.yaml", b"mlflow_uri: http://bob:s3cret@host\nname: smoke\n")
    publish(config, folder)
    client = mlflow.MlflowClient(tracking_uri=uri)
    kept = client.download_artifacts(runs(uri)[0].info.run_id, "config.yaml", str(tmp_path))
    assert Path(kept).read_text() == "mlflow_uri: http://bob:***@host\nname: smoke\n"


def test_a_failed_run_is_tracked_as_failed(config: Config, folder: RunFolder, uri: str) -> None:
    state = replace(folder.states()["verdict"], status="failed")
    folder.set_state("verdict", state)
    folder.drop_state("promote")
    publish(config, folder)
    parent, nested = runs(uri)
    assert parent.info.status == "FAILED"
    assert "decision" not in parent.data.tags
    assert len(nested) == 3


def test_a_tracker_that_fails_is_a_warning(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(SMOKE, ["tracking.mlflow_uri=sqlite:////proc/no/such/place.db"])
    publish(config, folder)
    assert "tracking mlflow sqlite:////proc" in caplog.text
    assert not folder.path("tracking.json").exists()


def test_without_a_uri_nothing_is_told(folder: RunFolder) -> None:
    publish(load_config(SMOKE), folder)
    assert not folder.path("tracking.json").exists()


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="registered_model: needs mlflow_uri"):
        load_config(SMOKE, ["tracking.registered_model=helper"])


def test_every_setting_is_a_parameter() -> None:
    params = flat_params(load_config(SMOKE))
    assert params["search.num_trials"] == "2"
    assert params["model.base"] == "bundled:smollm2-135m-instruct"
    assert params["search.space.beta.uniform"] == "[0.05, 0.3]"
