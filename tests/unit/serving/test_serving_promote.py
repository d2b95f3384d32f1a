import hashlib
import json
import shutil
from pathlib import Path

import pytest

from serving import promote
from serving.promote import UsageError, candidate_of


def make_run(root: Path, decision: str) -> Path:
    run = root / "runs" / "local"
    for name in ("base", "candidate"):
        folder = run / "models" / name
        folder.mkdir(parents=True)
        (folder / "model.gguf").write_text(name)
        manifest = {"sha256": hashlib.sha256(name.encode()).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    (run / "report").mkdir()
    (run / "report" / "report.json").write_text(json.dumps({"decision": decision}))
    return run


def test_a_run_that_won_gives_its_candidate(tmp_path: Path) -> None:
    run = make_run(tmp_path, "promote")
    found = candidate_of(run, force=False)
    assert found.model == run / "models" / "candidate" / "model.gguf"
    assert (found.run, found.sha256) == ("local", hashlib.sha256(b"candidate").hexdigest())
    assert found.base is not None
    assert found.base.sha256 == hashlib.sha256(b"base").hexdigest()


def test_of_several_candidates_the_one_that_the_report_names_is_given(tmp_path: Path) -> None:
    run = make_run(tmp_path, "promote")
    shutil.copytree(run / "models" / "base", run / "models" / "candidate-2")
    report = run / "report" / "report.json"
    report.write_text(json.dumps({"decision": "promote", "candidate": "candidate-2"}))
    assert candidate_of(run, force=False).model == run / "models" / "candidate-2" / "model.gguf"
    report.write_text(json.dumps({"decision": "promote", "candidate": "../elsewhere"}))
    with pytest.raises(UsageError, match="names no candidate"):
        candidate_of(run, force=False)


@pytest.mark.parametrize("decision", ["keep_base", "inconclusive"])
def test_a_run_that_did_not_win_needs_force(tmp_path: Path, decision: str) -> None:
    run = make_run(tmp_path, decision)
    with pytest.raises(UsageError, match=decision):
        candidate_of(run, force=False)
    assert candidate_of(run, force=True).run == "local"


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry = ["--registry", str(tmp_path / "registry")]
    assert promote.main(["status", *registry]) == 1
    assert promote.main(["rollback", *registry]) == 1
    assert promote.main([str(tmp_path / "none"), *registry]) == 2
    assert promote.main([str(make_run(tmp_path, "keep_base")), *registry]) == 2
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(64))
    assert promote.main([str(tmp_path / "bad.gguf"), *registry]) == 1
    assert "bad.gguf" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit) as usage:
        promote.main([*registry])
    assert usage.value.code == 2
    assert promote.main(["status", *registry]) == 1, "nothing was promoted"
