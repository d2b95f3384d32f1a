"""GGUF files: read with suspicion, written after a template."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from export_files import CONFIG, LAYER, random_state, write_template

from ray_jobs.errors import ModelError
from ray_jobs.export.errors import ModelMismatch
from ray_jobs.export.gguf_file import GgufFile
from ray_jobs.export.gguf_tensors import interleave_rope, layout_of, split_rope
from ray_jobs.export.gguf_writer import plan_tensors, write_gguf
from ray_jobs.export.untouched import check_untouched

LAYOUT = layout_of(CONFIG, "config.json")


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A template with the weights of random_state(), in F16."""
    write_gguf(GgufFile(write_template(tmp_path / "bare.gguf")), random_state(), LAYOUT, tmp_path / "t.gguf")
    return tmp_path / "t.gguf"


def test_reads_what_the_gguf_package_wrote(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.float32).reshape(2, 32)
    quantised = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_bool("some.truth", True)
    writer.add_tensor("plain", values)
    writer.add_tensor("vector", values[0])
    writer.add_tensor("packed", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(path)
    assert file.architecture == "llama"
    assert file.get("some.numbers") == [1, 2, 3]
    assert file.get("some.truth") is True
    assert file.tensors["plain"].shape == (2, 32)
    np.testing.assert_array_equal(file.array("plain"), values)
    np.testing.assert_array_equal(file.array("vector"), values[0])
    np.testing.assert_allclose(file.array("packed"), values, atol=0.3)


def test_every_cut_of_a_file_is_refused_by_name(template: Path, tmp_path: Path) -> None:
    data = template.read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [*range(0, len(data) - 40, 61), len(data) - 40]:
        cut.write_bytes(data[:size])
        with pytest.raises(ModelError, match=r"cut\.gguf: not a whole GGUF file"):
            GgufFile(cut)


@pytest.mark.parametrize("data", [b"PK\x03\x04" + bytes(100), b"GGUF" + b"\xff" * 100, b"FUGG" + bytes(64)])
def test_foreign_files_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"x\.gguf: not a whole GGUF file"):
        GgufFile(path)


def test_flipped_header_bytes_never_end_in_another_error(template: Path, tmp_path: Path) -> None:
    data = bytearray(template.read_bytes())
    path = tmp_path / "flipped.gguf"
    header = data.index(b"blk.0.ffn_up.weight") + 60
    num_refused = 0
    for position in range(4, header):
        flipped = data.copy()
        flipped[position] ^= 0xFF
        path.write_bytes(flipped)
        try:
            GgufFile(path)
        except ModelError:
            num_refused += 1  # any other error fails the test
    assert num_refused > 0.2 * header


def test_metadata_is_copied_byte_for_byte_but_for_the_file_type(template: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    write_gguf(GgufFile(template), random_state(1), LAYOUT, out, "bf16")
    before, after = GgufFile(template).entries, GgufFile(out).entries
    assert {key: entry.raw for key, entry in before.items() if key != "general.file_type"} == {
        key: entry.raw for key, entry in after.items() if key != "general.file_type"
    }
    assert (before["general.file_type"].value, after["general.file_type"].value) == (1, 32)
    reader = gguf.GGUFReader(out)
    assert [tensor.name for tensor in reader.tensors] == list(GgufFile(template).tensors)


def test_weights_arrive_in_their_place_and_layout(template: Path) -> None:
    state, file = random_state(), GgufFile(template)
    np.testing.assert_array_equal(file.array("blk.0.ffn_down.weight"), state[f"{LAYER}.mlp.down_proj.weight"])
    query = state[f"{LAYER}.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(file.array("blk.0.attn_q.weight"), query[[0, 2, 1, 3, 4, 6, 5, 7]])
    key = state[f"{LAYER}.self_attn.k_proj.weight"]
    np.testing.assert_array_equal(file.array("blk.0.attn_k.weight"), key[[0, 2, 1, 3]])
    assert {file.tensors[name].type for name in file.tensors if name.endswith("norm.weight")} == {0}
    assert file.tensors["token_embd.weight"].type == 1


def test_rope_layouts_are_inverses() -> None:
    values = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
    np.testing.assert_array_equal(split_rope(interleave_rope(values, 3), 3), values)
    np.testing.assert_array_equal(interleave_rope(np.arange(8), 1), [0, 4, 1, 5, 2, 6, 3, 7])


def test_a_matrix_beyond_f16_is_stored_in_f32(template: Path, tmp_path: Path) -> None:
    state = random_state()
    state[f"{LAYER}.mlp.up_proj.weight"][0, 0] = 70000.0
    write_gguf(GgufFile(template), state, LAYOUT, tmp_path / "out.gguf")
    file = GgufFile(tmp_path / "out.gguf")
    assert file.tensors["blk.0.ffn_up.weight"].type == 0
    assert file.array("blk.0.ffn_up.weight")[0, 0] == 70000.0


def test_weights_that_are_not_finite_are_refused_and_nothing_is_left(template: Path, tmp_path: Path) -> None:
    state = random_state()
    state["model.norm.weight"][3] = np.nan
    with pytest.raises(ModelError, match=r"model\.norm\.weight holds values that are not finite"):
        write_gguf(GgufFile(template), state, LAYOUT, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*out.gguf*"))


def _shapes(state: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in state.items()}


def test_shapes_that_differ_name_the_tensor(template: Path) -> None:
    state = random_state() | {"model.embed_tokens.weight": np.zeros((13, 8), np.float32)}
    with pytest.raises(ModelMismatch, match=r"tensor token_embd.weight is \[12, 8\], the base's \[13, 8\]"):
        plan_tensors(GgufFile(template), _shapes(state), LAYOUT)


def test_a_weight_without_a_place_and_a_place_without_a_weight(template: Path) -> None:
    extra = random_state() | {f"{LAYER}.self_attn.q_proj.bias": np.zeros(8, np.float32)}
    with pytest.raises(ModelMismatch, match=r"no tensor blk\.0\.attn_q\.bias"):
        plan_tensors(GgufFile(template), _shapes(extra), LAYOUT)
    fewer = random_state()
    del fewer["model.norm.weight"]
    with pytest.raises(ModelMismatch, match=r"no weights for tensor output_norm\.weight"):
        plan_tensors(GgufFile(template), _shapes(fewer), LAYOUT)


def test_two_weights_of_one_place_are_refused(template: Path) -> None:
    twice = _shapes(random_state()) | {"layers.0.attention.wq.weight": (8, 8)}
    says = r"q_proj\.weight and layers\.0\.attention\.wq\.weight are both tensor blk\.0\.attn_q\.weight"
    with pytest.raises(ModelError, match=says):
        plan_tensors(GgufFile(template), twice, LAYOUT)


def test_an_output_layer_of_a_tied_template_is_the_embedding(tmp_path: Path) -> None:
    state = random_state()
    bare = write_template(tmp_path / "bare.gguf")
    untied = layout_of({**CONFIG, "tie_word_embeddings": False}, "config.json")
    head = state["model.embed_tokens.weight"]
    write_gguf(GgufFile(bare), {**state, "lm_head.weight": head}, untied, tmp_path / "untied.gguf")
    planned = plan_tensors(GgufFile(tmp_path / "untied.gguf"), _shapes(state), LAYOUT)
    assert {item.hf_name for item in planned if item.name == "output.weight"} == {"model.embed_tokens.weight"}


def test_rope_factors_of_the_template_are_kept(tmp_path: Path) -> None:
    factors = np.array([1.0, 8.0], dtype=np.float32)
    bare = write_template(tmp_path / "bare.gguf", {"rope_freqs.weight": factors})
    write_gguf(GgufFile(bare), random_state(), LAYOUT, tmp_path / "out.gguf")
    np.testing.assert_array_equal(GgufFile(tmp_path / "out.gguf").array("rope_freqs.weight"), factors)


def test_untouched_weights_of_the_same_base_agree(template: Path) -> None:
    found = check_untouched(GgufFile(template), random_state(), LAYOUT, frozenset())
    assert found.tensors == len(GgufFile(template).tensors)
    assert found.max_relative_error == 0.0


@pytest.mark.parametrize("name", ["model.norm.weight", f"{LAYER}.self_attn.k_proj.weight"])
def test_a_weight_of_another_base_is_caught_unless_training_touched_it(template: Path, name: str) -> None:
    state = random_state()
    state[name] = state[name] * 1.01
    with pytest.raises(ModelMismatch, match="is not the base's GGUF"):
        check_untouched(GgufFile(template), state, LAYOUT, frozenset())
    assert check_untouched(GgufFile(template), state, LAYOUT, {name}).tensors == 10


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_0", "Q4_0", "Q4_1"])
def test_quantisation_alone_is_within_what_its_format_explains(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    qtype = gguf.GGMLQuantizationType[kind]
    path = tmp_path / "q.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("output.weight", gguf.quants.quantize(values, qtype), raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    untied = layout_of({**CONFIG, "tie_word_embeddings": False}, "config.json")
    found = check_untouched(GgufFile(path), {"lm_head.weight": values}, untied, frozenset())
    assert found.max_relative_error > 0
    with pytest.raises(ModelMismatch, match=r"output\.weight differs by 1"):
        check_untouched(GgufFile(path), {"lm_head.weight": values[::-1]}, untied, frozenset())
