import hashlib
import json
import shutil
from pathlib import Path

import pytest
from gguf import GGUFWriter

from serving import promote
from serving.engine import Engine, EngineSettings
from serving.promote import UsageError, candidate_of
from serving.registry import Registry


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


def test_a_rollback_whose_reason_cannot_be_noted_is_a_rollback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry(tmp_path / "registry")
    for content in ("one", "two"):
        path = tmp_path / content
        path.write_text(content)
        sha256 = hashlib.sha256(content.encode()).hexdigest()
        registry.promote(path, sha256=sha256, run=content, report=tmp_path)
    (registry.root / "rollbacks.jsonl").mkdir()
    assert promote.main(["rollback", "--registry", str(registry.root)]) == 0
    assert promote.main(["status", "--registry", str(registry.root)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[2] == "one"


def write_header(path: Path, **numbers: int) -> Path:
    """A model without weights."""
    writer = GGUFWriter(path, "llama")
    for key, number in numbers.items():
        writer.add_uint32(key.replace("__", "."), number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_a_part_of_a_model_is_refused_with_how_to_merge_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = write_header(tmp_path / "m-Q4_K_M-00002-of-00003.gguf", split__count=3)
    assert promote.main([str(part), "--registry", str(tmp_path / "registry")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "llama-gguf-split --merge m-Q4_K_M-00001-of-00003.gguf m-Q4_K_M.gguf" in line
    assert not (tmp_path / "registry" / "champion.json").exists()


def test_a_model_of_short_texts_is_tried_with_as_short_a_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Opened(Exception):
        pass

    def open_engine(_: Path, settings: EngineSettings) -> Engine:
        raise Opened(settings.context_tokens)

    monkeypatch.setattr(Engine, "open", open_engine)
    for trained, context in ((256, 256), (4096, 512)):
        with pytest.raises(Opened, match=str(context)):
            promote.first_words(write_header(tmp_path / "m.gguf", llama__context_length=trained))
