import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ray_jobs.errors import ConfigError, RunBusy, RunConflict
from ray_jobs.locks import owned
from ray_jobs.runs import (
    JOB_FOLDER,
    RunFolder,
    StageState,
    dump_json,
    file_sha256,
    json_sha256,
    open_run,
    refuse_fleeting,
    write_whole,
)


def state(status: str = "done", outputs: dict[str, str] | None = None) -> StageState:
    return StageState(status, "i", {"a": "1"}, outputs or {}, "2026-01-01T00:00:00+00:00", None, 1.5)


def test_write_whole_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "file.json"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert [item.name for item in path.parent.iterdir()] == ["file.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_whole(path, b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_hash_ignores_key_order_and_refuses_nan() -> None:
    assert json_sha256({"a": 1, "b": [2]}) == json_sha256({"b": [2], "a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_json({"x": float("nan")})


def test_states_are_kept_and_dropped(tmp_path: Path) -> None:
    run = open_run(str(tmp_path), "r")
    run.set_state("tune", state("running"))
    run.set_state("export", state())
    run.set_state("tune", state("done"))
    assert {name: item.status for name, item in run.states().items()} == {"tune": "done", "export": "done"}
    run.drop_state("tune")
    assert list(run.states()) == ["export"]


def test_outputs_are_whole_only_with_their_hashes(tmp_path: Path) -> None:
    run = open_run(str(tmp_path), "r")
    path = run.write("a/b.txt", b"text")
    kept = state(outputs={"a/b.txt": file_sha256(path)})
    assert run.outputs_whole(kept)
    path.write_bytes(b"texT")
    assert not run.outputs_whole(kept)
    path.unlink()
    assert not run.outputs_whole(kept)


def test_a_damaged_state_file_is_named(tmp_path: Path) -> None:
    run = open_run(str(tmp_path), "r")
    run.path("state.json").write_text('{"tune": ')
    with pytest.raises(RunConflict, match=r"state\.json: is damaged"):
        run.states()


def test_a_run_folder_that_leads_out_of_storage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "r").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="leads out of"):
        open_run(str(tmp_path / "runs"), "r")


def test_storage_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigError, match="storage"):
        open_run(str(tmp_path / "runs"), "r")


def test_a_run_has_one_owner_at_a_time(tmp_path: Path) -> None:
    with owned(tmp_path):
        holder = json.loads((tmp_path / "owner.json").read_text())
        assert set(holder) == {"host", "pid", "since", "seen"}
        with pytest.raises(RunBusy, match=f"process {holder['pid']} on {holder['host']}"), owned(tmp_path):
            pass
    assert not (tmp_path / "owner.json").exists()
    with owned(tmp_path):
        pass


def test_a_killed_owner_lets_go(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, ray_jobs.locks as locks\n"
        f"with locks.owned(pathlib.Path({str(tmp_path)!r})):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunBusy, match=f"process {holder.pid} on "), owned(tmp_path):
            pass
        holder.kill()
        holder.wait()
        with owned(tmp_path):
            assert json.loads((tmp_path / "owner.json").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_on_a_file_system_without_locks_the_heartbeat_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with owned(tmp_path), pytest.raises(RunBusy, match=f"process {os.getpid()} on"), owned(tmp_path):
        pass
    with owned(tmp_path):
        assert (tmp_path / "owner.json").is_file()


def test_a_run_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(ConfigError, match=f"{tmp_path}: cannot be written to: "), owned(tmp_path):
        pass


@pytest.mark.parametrize("text", ["[]", "null", '{"tune": {"unknown": 1}}', '{"tune": 3}'])
def test_a_state_file_of_another_kind_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(RunConflict, match=r"state\.json: is no record of stages"):
        RunFolder(tmp_path).states()


def test_a_submitted_job_keeps_nothing_in_its_copy_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / JOB_FOLDER / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    for field in ("storage", "registry"):
        with pytest.raises(ConfigError, match=f"{field}: 'x' would vanish with the job"):
            refuse_fleeting(field, "x")
    for fine in (str(tmp_path), "s3://bucket/x", f"file://{tmp_path}"):
        refuse_fleeting("registry", fine)


def test_without_file_locks_the_heartbeat_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    (tmp_path / "owner.json").write_text('{"host": "elsewhere", "pid": 7}')
    with pytest.raises(RunBusy, match="process 7 on elsewhere"), owned(tmp_path):
        pass
    os.utime(tmp_path / "owner.json", (0, 0))
    with owned(tmp_path):
        assert json.loads((tmp_path / "owner.json").read_text())["pid"] == os.getpid()
