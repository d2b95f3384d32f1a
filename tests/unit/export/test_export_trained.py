"""What a trial has trained, an adapter or all weights: kept by the search, checked by the export."""

import json
from pathlib import Path
from typing import Any

import pytest
from export_files import SHAPES, random_state, write_adapter

from ray_jobs.errors import ModelError, StageFailed
from ray_jobs.export.adapter import base_shapes
from ray_jobs.export.errors import ModelMismatch
from ray_jobs.export.trained import ADAPTER_FILES, WholeModel, check_trained, trained_files, trained_sha256
from ray_jobs.runs import RunFolder
from ray_jobs.search.trials import Trial
from ray_jobs.stages.checkpoints import write_note
from ray_jobs.stages.export import candidate_files
from ray_jobs.stages.tune import keep_best

PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def write_whole_model(folder: Path, state: dict[str, Any], *, parts: bool = False) -> Path:
    """A checkpoint of a training of all weights."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(b"moments")
    (folder / "config.json").write_text("{}")
    names = sorted(state)
    if not parts:
        save_file(state, folder / "model.safetensors")
        return folder
    shares = dict(zip(PARTS, (names[:4], names[4:]), strict=True))
    for part, held in shares.items():
        save_file({name: state[name] for name in held}, folder / part)
    places = {name: part for part, held in shares.items() for name in held}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


@pytest.mark.parametrize("parts", [False, True])
def test_all_weights_are_kept_and_found_again(tmp_path: Path, parts: bool) -> None:
    checkpoint = write_whole_model(tmp_path / "checkpoint", random_state(), parts=parts)
    write_note(checkpoint, 0, [{"step": 1}])
    run = RunFolder(tmp_path / "run")
    best = Trial("t", "done", {}, str(checkpoint), steps=1, seconds=1.0)
    keep_best(best, run.path("tune/best"))
    names = [*PARTS, INDEX] if parts else ["model.safetensors"]
    assert sorted(path.name for path in run.path("tune/best").iterdir()) == names
    assert candidate_files(run) == tuple(f"tune/best/{name}" for name in names)
    for name in names:
        assert run.path("tune/best", name).read_bytes() == (checkpoint / name).read_bytes()
    trained = check_trained(run.path("tune/best"), SHAPES, tied=True)
    assert trained == WholeModel(run.path("tune/best"), frozenset(SHAPES))


def test_an_adapter_is_kept_as_before(tmp_path: Path) -> None:
    import numpy as np

    lora = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((2, 8), np.float32)}
    checkpoint = write_adapter(tmp_path / "checkpoint", lora)
    (checkpoint / "optimizer.pt").write_bytes(b"moments")
    write_note(checkpoint, 0, [{"step": 1}])
    best = Trial("t", "done", {}, str(checkpoint), steps=1, seconds=1.0)
    keep_best(best, tmp_path / "best")
    assert trained_files(tmp_path / "best") == ADAPTER_FILES
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == sorted(ADAPTER_FILES)


def test_a_trial_that_kept_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    write_note(tmp_path / "checkpoint", 0, [{"step": 1}])
    best = Trial("t", "done", {}, str(tmp_path / "checkpoint"), steps=1, seconds=1.0)
    with pytest.raises(StageFailed, match=r"adapter_model\.safetensors is missing: .* kept no weights"):
        keep_best(best, tmp_path / "best")


def test_weights_that_lie_there_twice_are_read_once(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    folder = write_whole_model(tmp_path / "model", random_state(), parts=True)
    save_file({"layers.0.attention.wk.weight": np.zeros((4, 8))}, folder / "consolidated.safetensors")
    assert base_shapes(folder) == SHAPES


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"model.norm.weight": None}, ModelError, r"model\.norm\.weight is missing"),
        ({"model.norm.weight": 9}, ModelMismatch, r"model\.norm\.weight is \[9\], the base's is \[8\]"),
        ({"model.extra.weight": 8}, ModelMismatch, r"model\.extra\.weight, which the base does not have"),
    ],
)
def test_weights_of_another_base_are_refused(
    tmp_path: Path, change: dict[str, int | None], error: type[Exception], says: str
) -> None:
    import numpy as np

    state = random_state() | {name: np.zeros(size or 0, np.float32) for name, size in change.items()}
    kept = {name: values for name, values in state.items() if change.get(name, 1) is not None}
    folder = write_whole_model(tmp_path / "other", kept)
    with pytest.raises(error, match=says):
        check_trained(folder, SHAPES, tied=True)


def test_other_weights_have_another_hash(tmp_path: Path) -> None:
    folders = [write_whole_model(tmp_path / str(seed), random_state(seed), parts=True) for seed in (0, 1)]
    assert trained_sha256(folders[0], tmp_path / "cache") != trained_sha256(folders[1], tmp_path / "cache")
