"""`orpo init` copies a shipped config and never writes over one."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from ray_jobs.cli import main as cli
from ray_jobs.cli import shipped
from ray_jobs.config import load_config
from ray_jobs.errors import ConfigError
from ray_jobs.ranking.settings import load_comparison

CONFIGS = Path(__file__).parents[3] / "configs"


def test_a_config_is_copied_and_can_be_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, ["init"])
    assert done.exit_code == 0, done.output
    assert done.stdout == "configs/local.yaml\nnext: orpo run configs/local.yaml --check\n"
    assert Path("configs/local.yaml").read_bytes() == (CONFIGS / "local.yaml").read_bytes()
    assert CliRunner().invoke(cli.app, ["run", "configs/local.yaml", "--check"]).exit_code == 0


def test_a_comparison_brings_the_run_that_it_shares(tmp_path: Path) -> None:
    assert len(load_comparison(shipped.copy_config("seed-comparison", tmp_path))[1]) == 4


def test_own_data_brings_the_metric_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = shipped.copy_config("own-data", Path("configs"))
    assert all(Path(metric).is_file() for metric in load_config(path).judge.metrics)


def test_own_data_names_its_metric_wherever_it_is_copied_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (Path(), Path("my, 'own' configs"), tmp_path / "absolute"):
        path = shipped.copy_config("own-data", folder)
        (metric,) = load_config(path).judge.metrics
        assert Path(metric).read_bytes() == (CONFIGS / "metrics/instruction-following.yaml").read_bytes()


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("own-data", "orpo run my/own-data.yaml --check"),
        ("seed-comparison", "orpo compare my/seed-comparison.yaml --check"),
        ("serve", "serve deploy my/serve.yaml"),
    ],
)
def test_the_next_step_fits_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, step: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, ["init", name, "--to", "my"])
    assert done.stdout == f"my/{name}.yaml\nnext: {step}\n"


def test_an_unknown_name_and_a_file_that_is_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'lokal': no such config; there are .*local"):
        shipped.copy_config("lokal", tmp_path)
    shipped.copy_config("smoke", tmp_path)
    with pytest.raises(ConfigError, match="is there already"):
        shipped.copy_config("smoke", tmp_path)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/configs: Not a directory"):
        shipped.copy_config("smoke", tmp_path / "file" / "configs")
