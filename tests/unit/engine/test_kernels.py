"""Our kernels against arithmetic in double precision, against llama.cpp's, and against themselves: a row's
result may not depend, in any bit, on what else is computed."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from serving.engine.llamacpp import kernels
from serving.engine.llamacpp.kernels.origins import TILE_TOKENS, Origins
from tests.ggml_graphs import BLOCK, Q6_K_DTYPE, Q8_0_DTYPE, Ggml

COLUMNS = 8
ROWS = 4


@pytest.fixture(scope="module")
def ggml() -> Ggml:
    try:
        kernels.check_platform()
        kernels.instruction_sets()
    except kernels.KernelsUnfit as error:
        pytest.skip(str(error))
    return Ggml()


def test_they_are_in_use_where_the_processor_can(ggml: Ggml) -> None:
    assert kernels.state() == kernels.State(True, instruction_set=kernels.instruction_sets()[0].name)


def packed_weights(random: Any, columns: int, n: int) -> tuple[Any, Any]:
    """block_q4_0x8 as bytes, and the same weights as numbers (columns, n)."""
    quants = random.integers(0, 16, (columns, n // BLOCK, BLOCK), dtype=np.uint8)
    scales = random.normal(0, 0.1, (columns, n // BLOCK)).astype(np.float16)
    dtype = np.dtype([("scales", "<f2", COLUMNS), ("nibbles", "u1", (2, COLUMNS, 8))])
    packed = np.zeros((columns // COLUMNS, n // BLOCK), dtype)
    for column in range(columns):
        group, place = divmod(column, COLUMNS)
        low, high = quants[column, :, :16], quants[column, :, 16:]
        packed["scales"][group, :, place] = scales[column]
        packed["nibbles"][group, :, :, place] = ((low | high << 4) ^ 0x88).reshape(-1, 2, 8)
    numbers = (quants.astype(np.float64) - 8) * scales[:, :, None].astype(np.float64)
    return packed, numbers.reshape(columns, n)


def rows_of(random: Any, count: int, n: int) -> Any:
    rows = np.zeros((count, n // BLOCK), Q8_0_DTYPE)
    rows["numbers"] = random.integers(-128, 128, (count, n // BLOCK, BLOCK))
    rows["scale"] = random.normal(0, 0.01, (count, n // BLOCK))
    return rows


def numbers_of(rows: Any) -> Any:
    return (rows["numbers"] * rows["scale"][..., None].astype(np.float64)).reshape(rows.shape[0], -1)


def packed_rows(rows: Any) -> Any:
    """block_q8_0x4: four rows, in runs of eight numbers."""
    dtype = np.dtype([("scales", "<f2", ROWS), ("numbers", "i1", (4, ROWS, 8))])
    packed = np.zeros((rows.shape[0] // ROWS, rows.shape[1]), dtype)
    for row in range(rows.shape[0]):
        group, place = divmod(row, ROWS)
        packed["scales"][group, :, place] = rows["scale"][row]
        packed["numbers"][group, :, :, place] = rows["numbers"][row].reshape(-1, 4, 8)
    return packed


def packed_product(name: str, weights: Any, rows: Any, num_rows: int, columns: int, n: int) -> Any:
    function = getattr(kernels._library(), name)
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p]
    function.argtypes += [ctypes.c_int, ctypes.c_int]
    function.restype = None
    out = np.full((num_rows, columns), np.nan, np.float32)
    function(n, out.ctypes.data, columns, weights.ctypes.data, rows.ctypes.data, num_rows, columns)
    return out


@pytest.mark.parametrize("n", [32, 576, 2048])
@pytest.mark.parametrize("columns", [8, 16, 40, 576])
@pytest.mark.parametrize("num_rows", [4, 8, 12, 32])
def test_q4_0_products(ggml: Ggml, n: int, columns: int, num_rows: int) -> None:
    random = np.random.default_rng([n, columns, num_rows])
    weights, numbers = packed_weights(random, columns, n)
    rows = rows_of(random, num_rows, n)
    expected = numbers_of(rows) @ numbers.T
    found = packed_product("serving_q4_0_rows", weights, packed_rows(rows), num_rows, columns, n)
    size = np.abs(numbers_of(rows)) @ np.abs(numbers).T
    assert np.abs(found - expected).max() <= 2e-6 * size.max()
    for row in range(num_rows):
        alone = packed_product("serving_q4_0_row", weights, rows[row], 1, columns, n)
        assert alone.tobytes() == found[row : row + 1].tobytes()


@pytest.mark.parametrize("greatest", [False, True])
def test_q4_0_products_are_llama_cpps_to_the_last_bit(ggml: Ggml, greatest: bool) -> None:
    """Those of several rows: they add up in the same order. Its single row rounds otherwise.

    greatest: with the greatest sums that a block can have.
    """
    random = np.random.default_rng(7)
    weights, _ = packed_weights(random, 40, 576)
    unpacked = rows_of(random, 8, 576)
    if greatest:
        weights["nibbles"][::2] = 0x88
        weights["nibbles"][1::2] = 0x77
        unpacked["numbers"][:4], unpacked["numbers"][4:] = 127, -128
    rows = packed_rows(unpacked)
    found = packed_product("serving_q4_0_rows", weights, rows, 8, 40, 576)
    with kernels.switched_off():
        assert found.tobytes() == packed_product("serving_q4_0_rows", weights, rows, 8, 40, 576).tobytes()


Q4_K_DTYPE = np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("parts", "u1", 12), ("nibbles", "u1", 128)])
Q4_K_X8_DTYPE = np.dtype(
    [("scales", "<f2", 8), ("minima", "<f2", 8), ("parts", "u1", (8, 12)), ("nibbles", "u1", (16, 8, 8))]
)
Q8_K_DTYPE = np.dtype([("scale", "<f4"), ("numbers", "i1", 256), ("sums", "<i2", 16)])
Q8_K_X4_DTYPE = np.dtype([("scales", "<f4", 4), ("numbers", "i1", (32, 4, 8)), ("sums", "<i2", (4, 4, 4))])


def q4_k_weights(random: Any, columns: int, n: int) -> tuple[Any, Any]:
    """block_q4_Kx8, and the numbers (columns, n), as the field's own Python package reads them."""
    weights = np.frombuffer(random.bytes(columns * n // 256 * Q4_K_DTYPE.itemsize), Q4_K_DTYPE).copy()
    weights["scale"], weights["minimum"] = random.normal(0, 1e-3, (2, weights.size))
    numbers = dequantize(weights.view(np.uint8).reshape(columns, -1), GGMLQuantizationType.Q4_K)
    weights = weights.reshape(columns // 8, 8, n // 256)
    packed = np.zeros((columns // 8, n // 256), Q4_K_X8_DTYPE)
    packed["scales"], packed["minima"] = (weights[name].swapaxes(1, 2) for name in ("scale", "minimum"))
    packed["nibbles"] = weights["nibbles"].reshape(columns // 8, 8, n // 256, 16, 8).transpose(0, 2, 3, 1, 4)
    scales, minima = unpacked_parts(weights["parts"])  # (groups, 8 columns, blocks, 8 parts)
    scales, minima = (each.transpose(0, 2, 3, 1) for each in (scales, minima))
    low, high = slice(0, 4), slice(4, 8)
    packed["parts"][..., 0:4] = scales[..., low] | (scales[..., high] & 0x30) << 2
    packed["parts"][..., 4:8] = minima[..., low] | (minima[..., high] & 0x30) << 2
    packed["parts"][..., 8:12] = scales[..., high] & 15 | (minima[..., high] & 15) << 4
    return packed, numbers.astype(np.float64)


def unpacked_parts(parts: Any) -> tuple[Any, Any]:
    """Scales and minima of block_q4_K's twelve bytes, eight each."""
    first, second, third = parts[..., 0:4], parts[..., 4:8], parts[..., 8:12]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=-1)
    return scales, np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=-1)


def q8_k_rows(random: Any, count: int, n: int) -> tuple[Any, Any, Any]:
    """block_q8_K, four rows side by side as block_q8_Kx4, and the numbers (rows, n)."""
    rows = np.zeros((count, n // 256), Q8_K_DTYPE)
    rows["numbers"] = random.integers(-127, 128, rows["numbers"].shape)
    rows["scale"] = random.normal(0, 0.01, rows.shape)
    rows["sums"] = rows["numbers"].reshape(*rows.shape, 16, 16).sum(-1, dtype=np.int16)
    packed = np.zeros((count // 4, n // 256), Q8_K_X4_DTYPE)
    packed["scales"] = rows["scale"].reshape(-1, 4, n // 256).swapaxes(1, 2)
    packed["numbers"] = rows["numbers"].reshape(-1, 4, n // 256, 32, 8).transpose(0, 2, 3, 1, 4)
    packed["sums"] = rows["sums"].reshape(-1, 4, n // 256, 4, 4).transpose(0, 2, 3, 1, 4)
    numbers = rows["numbers"] * rows["scale"][..., None].astype(np.float64)
    return rows, packed, numbers.reshape(count, n)


@pytest.mark.parametrize("n", [256, 1024])
@pytest.mark.parametrize("columns", [8, 16, 40])
@pytest.mark.parametrize("num_rows", [4, 8, 20])
def test_q4_k_products(ggml: Ggml, n: int, columns: int, num_rows: int) -> None:
    random = np.random.default_rng([n, columns, num_rows])
    weights, numbers = q4_k_weights(random, columns, n)
    rows, packed, row_numbers = q8_k_rows(random, num_rows, n)
    size = (np.abs(row_numbers) @ np.abs(numbers).T).max()
    found = packed_product("serving_q4_k_rows", weights, packed, num_rows, columns, n)
    assert np.abs(found - row_numbers @ numbers.T).max() <= 2e-6 * size
    with kernels.switched_off():
        original = packed_product("serving_q4_k_rows", weights, packed, num_rows, columns, n)
    assert np.abs(found - original).max() <= 2e-6 * size
    for row in range(num_rows):
        alone = packed_product("serving_q4_k_row", weights, rows[row], 1, columns, n)
        assert alone.tobytes() == found[row : row + 1].tobytes()


def q8_0_weights(random: Any, columns: int) -> tuple[Any, Any]:
    weights = rows_of(random, columns, 512)
    return weights, numbers_of(weights)


def q6_k_weights(random: Any, columns: int) -> tuple[Any, Any]:
    """And the numbers, as the field's own Python package reads them."""
    weights = np.frombuffer(random.bytes(columns * 2 * Q6_K_DTYPE.itemsize), Q6_K_DTYPE).copy()
    weights["scale"] = random.normal(0, 1e-3, weights.shape)
    numbers = dequantize(weights.view(np.uint8).reshape(columns, -1), GGMLQuantizationType.Q6_K)
    return weights.reshape(columns, 2), numbers.astype(np.float64)


@pytest.mark.parametrize("kind", [q8_0_weights, q6_k_weights])
@pytest.mark.parametrize("columns", [1, 16, 100])
@pytest.mark.parametrize("num_rows", [1, 2, 7, 8, 9, 33])
def test_products_of_unpacked_weights(ggml: Ggml, kind: Any, columns: int, num_rows: int) -> None:
    random = np.random.default_rng([columns, num_rows])
    weights, numbers = kind(random, columns)
    rows = random.normal(0, 1, (num_rows, 512)).astype(np.float32)
    expected = rows.astype(np.float64) @ numbers.T
    size = (np.abs(rows) @ np.abs(numbers).T).max()
    found = ggml.product(weights, rows)
    assert np.abs(found - expected).max() <= 0.01 * size  # rows are rounded to 8 bits
    with kernels.switched_off():
        original = ggml.product(weights, rows)
    assert np.abs(found - original).max() <= 1e-5 * size  # in the same way
    assert found.tobytes() == ggml.product(weights, rows, threads=2).tobytes()
    for row in range(num_rows):
        assert ggml.product(weights, rows[[row]]).tobytes() == found[row].tobytes()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("kind", [q8_0_weights, q6_k_weights])
def test_the_greatest_sums_of_unpacked_weights(ggml: Ggml, kind: Any, sign: int) -> None:
    """Which sums of 16 bits just hold: all weights as far from zero as can be, all numbers 127 or -127."""
    weights, _ = kind(np.random.default_rng(9), 16)
    if kind is q8_0_weights:
        weights["numbers"] = -128
    else:
        weights["low"], weights["high"] = 0, 0
    rows = np.full((8, 512), sign, np.float32)
    rows[1::2] *= 3
    found = ggml.product(weights, rows)
    with kernels.switched_off():
        original = ggml.product(weights, rows)
    assert np.abs(original).max() > 0
    assert np.abs(found - original).max() <= 1e-5 * np.abs(original).max()


def exact(queries: Any, keys: Any, values: Any, mask: Any) -> Any:
    repeat = queries.shape[1] // keys.shape[1]
    keys, values = (np.repeat(each.astype(np.float64), repeat, axis=1) for each in (keys, values))
    scores = queries.astype(np.float64) @ keys.swapaxes(2, 3) * queries.shape[-1] ** -0.5
    scores = scores + mask.astype(np.float64)
    greatest = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(greatest), greatest, 0))
    total = weights.sum(-1, keepdims=True)
    return np.where(total > 0, weights / np.where(total > 0, total, 1), 0) @ values


def causal(sequences: int, tokens: int, keys: int, past: Any) -> Any:
    """Token t of a sequence sees its first past + t + 1 keys."""
    seen = np.arange(keys) <= np.asarray(past)[:, None, None] + np.arange(tokens)[None, :, None]
    return np.where(seen, 0, -np.inf).astype(np.float16)[:, None].reshape(sequences, 1, tokens, keys)


def inputs(random: Any, sequences: int, heads: int, key_heads: int, tokens: int, keys: int, head: int) -> Any:
    def normal(*shape: int) -> Any:
        return random.normal(0, 1, shape)

    return (
        3 * normal(sequences, heads, tokens, head).astype(np.float32),
        normal(sequences, key_heads, keys, head).astype(np.float16),
        normal(sequences, key_heads, keys, head).astype(np.float16),
    )


SHAPES = [  # sequences, heads, key heads, tokens, keys, head
    (1, 1, 1, 1, 32, 16),
    (16, 9, 3, 1, 256, 64),
    (3, 8, 8, 2, 512, 128),
    (2, 4, 1, 37, 320, 80),
    (1, 9, 3, 130, 512, 64),
    (1, 32, 8, 20, 100, 64),
    (1, 2, 1, 70, 96, 256),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention(ggml: Ggml, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(shape)
    sequences, _, _, tokens, keys, _ = shape
    queries, k, v = inputs(random, *shape)
    mask = causal(sequences, tokens, keys, random.integers(0, keys - tokens + 1, sequences))
    expected = exact(queries, k, v, mask).swapaxes(1, 2)
    found = ggml.attention(queries, k, v, mask)
    assert np.abs(found - expected).max() <= 2e-5
    with kernels.switched_off():
        original = ggml.attention(queries, k, v, mask)
    assert np.abs(original - expected).max() <= 2e-2  # it adds up in half precision
    assert found.tobytes() == ggml.attention(queries, k, v, mask, threads=2).tobytes()
    for sequence in range(sequences):
        for token in {0, tokens // 2, tokens - 1}:
            alone = ggml.attention(
                queries[sequence : sequence + 1, :, token : token + 1],
                k[sequence : sequence + 1],
                v[sequence : sequence + 1],
                mask[sequence : sequence + 1, :, token : token + 1],
            )
            assert alone.tobytes() == found[sequence, token].tobytes()


SHARED = [  # sequences of the cache, tiles with numbers; sequences, heads, key heads, tokens, keys, head
    ([[1, 1], [1, 1], [1, 1], [1, 1]], (4, 9, 3, 1, 192, 64)),
    ([[1, 2, 4], [1, 2, 5], [1, 3, 6], [1, 2, 5], [0, 0, 0], [7, 0, 0]], (6, 4, 2, 1, 224, 32)),
    ([[0], [3], [3], [3], [0], [3]], (5, 8, 8, 2, 128, 128)),  # from the cache's second sequence on
    ([[5] * 4] * 40, (40, 9, 3, 1, 256, 64)),  # more than a tile of queries
    ([[2, 2, 2, 2]] * 3, (3, 6, 2, 3, 200, 16)),  # the last tile is not a whole one
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("origins", "shape"), SHARED, ids=lambda each: str(each)[:40])
def test_what_sequences_have_in_common_is_read_once(
    ggml: Ggml, origins: list[list[int]], shape: tuple[int, ...], threads: int
) -> None:
    """And changes nothing, to the last bit; nor is it read of any but the first that a thread computes."""
    random = np.random.default_rng(shape)
    sequences, heads, key_heads, tokens, keys, head = shape
    numbers = np.array(origins, np.int32)
    queries, _, _ = inputs(random, *shape)
    _, k, v = inputs(random, len(numbers), heads, key_heads, tokens, keys, head)
    first = len(numbers) - sequences
    mask = causal(sequences, tokens, keys, random.integers(0, keys - tokens + 1, sequences))
    tiles = [(tile, slice(64 * tile, 64 * tile + 64)) for tile in range(min(keys // 64, numbers.shape[1]))]
    for tile, cells in tiles:
        for number in set(numbers[:, tile]) - {0}:
            alike = np.flatnonzero(numbers[:, tile] == number)
            k[alike, :, cells], v[alike, :, cells] = k[alike[0], :, cells], v[alike[0], :, cells]
    alone = ggml.attention(queries, k, v, mask, first=first)
    with origins_told(numbers):
        together = ggml.attention(queries, k, v, mask, first=first, threads=threads)
        assert together.tobytes() == alone.tobytes()
        for tile, cells in tiles:
            for thread in range(threads):
                members = np.arange(thread, sequences, threads)
                for number in set(numbers[first + members, tile]) - {0}:
                    for other in members[numbers[first + members, tile] == number][1:]:
                        k[first + other, :, cells] = v[first + other, :, cells] = np.nan
        together = ggml.attention(queries, k, v, mask, first=first, threads=threads)
        assert together.tobytes() == alone.tobytes()
    assert np.isnan(ggml.attention(queries, k, v, mask, first=first)).any()


@contextmanager
def origins_told(numbers: Any) -> Iterator[None]:
    kernels.share(numbers, TILE_TOKENS)
    try:
        yield
    finally:
        kernels.share(None, TILE_TOKENS)


def test_where_tiles_of_slots_come_from() -> None:
    """Only whole ones are told of; what is cut off and written anew is a slot's own."""
    origins = Origins(4, 5 * TILE_TOKENS)
    numbers = origins._numbers
    assert not origins.shared([0, 1, 2, 3])
    origins.copied(0, 1, 3 * TILE_TOKENS + 5)
    assert (numbers[0] == numbers[1]).all()
    assert numbers[0].tolist() == [1, 1, 1, 0, 0]
    assert origins.shared([0, 1])
    assert not origins.shared([0, 2, 3])
    origins.truncated(1, 2 * TILE_TOKENS - 1)
    assert numbers[1].tolist() == [1, 0, 0, 0, 0]
    origins.copied(1, 2, 4 * TILE_TOKENS)
    assert numbers[:3].tolist() == [[1, 1, 1, 0, 0], [1, 2, 2, 2, 0], [1, 2, 2, 2, 0]]
    origins.copied(3, 2, TILE_TOKENS - 1)
    assert not numbers[2:].any()
    origins.truncated(0, 0)
    assert not origins.shared([0, 1, 2, 3])
    assert not Origins(2, 0).shared([0, 1])


@pytest.mark.parametrize("tokens", [1, 40])
def test_a_mask_may_hold_any_numbers(ggml: Ggml, tokens: int) -> None:
    """Also where all of a tile's keys are seen: for all queries, for all but one number, for none alike."""
    random = np.random.default_rng(tokens)
    queries, k, v = inputs(random, 2, 6, 2, tokens, 192, 64)
    mask = np.zeros((2, 1, tokens, 192), np.float16)
    mask[0, 0, -1, 100] = -3.5
    mask[1, 0, :, 64:] = random.normal(0, 2, (tokens, 128))
    found = ggml.attention(queries, k, v, mask)
    assert np.abs(found - exact(queries, k, v, mask).swapaxes(1, 2)).max() <= 2e-5


def test_keys_that_nobody_sees_change_nothing(ggml: Ggml) -> None:
    random = np.random.default_rng(3)
    queries, k, v = inputs(random, 1, 6, 2, 5, 192, 64)
    mask = causal(1, 5, 192, [40])
    wide = [np.concatenate([each, 100 * each], axis=2) for each in (k, v)]
    found = ggml.attention(queries, *wide, np.pad(mask, [(0, 0)] * 3 + [(0, 192)], constant_values=-np.inf))
    assert found.tobytes() == ggml.attention(queries, k, v, mask).tobytes()


def test_a_row_that_sees_nothing_is_zero(ggml: Ggml) -> None:
    random = np.random.default_rng(4)
    queries, k, v = inputs(random, 1, 2, 1, 3, 128, 32)
    mask = causal(1, 3, 128, [60])
    mask[0, 0, 1] = -np.inf
    found = ggml.attention(queries, k, v, mask)
    assert not found[0, 1].any()
    assert found[0, [0, 2]] == pytest.approx(exact(queries, k, v, mask).swapaxes(1, 2)[0, [0, 2]], abs=2e-5)


def test_great_scores_do_not_overflow(ggml: Ggml) -> None:
    random = np.random.default_rng(5)
    queries, k, v = inputs(random, 1, 2, 1, 3, 128, 32)
    mask = causal(1, 3, 128, [100])
    found = ggml.attention(1000 * queries, k, v, mask)
    assert found == pytest.approx(exact(1000 * queries, k, v, mask).swapaxes(1, 2), abs=1e-3)


def test_what_is_no_number_stays_so(ggml: Ggml) -> None:
    """And only for the query that it concerns: a broken model is to be seen."""
    random = np.random.default_rng(8)
    queries, k, v = inputs(random, 1, 2, 1, 3, 128, 32)
    mask = causal(1, 3, 128, [100])
    sound = ggml.attention(queries, k, v, mask)
    queries[0, 1, 2, 5] = np.nan
    found = ggml.attention(queries, k, v, mask)
    assert np.isnan(found[0, 2, 1]).all()
    found[0, 2, 1] = sound[0, 2, 1]
    assert found.tobytes() == sound.tobytes()


def test_other_attention_is_left_to_llama_cpp(ggml: Ggml) -> None:
    """A cap on scores, no mask: computed by the function whose place was taken."""
    random = np.random.default_rng(6)
    queries, k, v = inputs(random, 1, 2, 1, 3, 128, 32)
    mask = causal(1, 3, 128, [100])
    for arguments in ({"mask": mask, "cap": 30.0}, {"mask": None}):
        found = ggml.attention(queries, k, v, **arguments)
        with kernels.switched_off():
            assert found.tobytes() == ggml.attention(queries, k, v, **arguments).tobytes()


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


STATE = (
    "from serving.engine.llamacpp import kernels, library; library.start();"
    "print(kernels.state().in_use, kernels.state().reason)"
)


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="this kernel has no huge pages to ask for")
def test_large_memory_is_asked_for_in_huge_pages(ggml: Ggml) -> None:
    """Weights, caches: whether the kernel has any to give is another matter."""
    size = 64 << 20  # which no C library takes from memory that was in use before
    memory = ggml.ggml_aligned_malloc(size)
    try:
        ctypes.memset(memory, 1, size)
        assert ctypes.string_at(memory + size - 1, 1) == b"\1"
        assert "hg" in flags_of(memory)
        assert memory % (2 << 20) == 0
    finally:
        ggml.ggml_aligned_free(memory, size)


def flags_of(address: int) -> list[str]:
    """Of the mapping that holds the address (`man proc_pid_smaps`)."""
    inside = False
    for line in Path("/proc/self/smaps").read_text("utf-8", "replace").splitlines():
        if place := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(place[1], 16) <= address < int(place[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"nothing is at {address:#x}")


def test_an_environment_variable_turns_them_off(ggml: Ggml) -> None:
    assert run(STATE, **{kernels.SWITCH: "1"}) == f"False {kernels.SWITCH}=1"
    assert run(STATE) == "True"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx2 fma f16c", [kernels.AVX2]),
        ("fpu avx2 fma f16c avx_vnni", [kernels.AVX_VNNI, kernels.AVX2]),
        ("fpu avx2 fma f16c avx512f avx512bw avx512dq avx512vl", [kernels.AVX2]),
        ("avx512_vnni avx512vl avx512dq avx512bw avx512f f16c fma avx2", [kernels.AVX512, kernels.AVX2]),
    ],
)
def test_what_the_processor_has(
    flags: str, expected: list[kernels.InstructionSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_: f"flags\t\t: {flags}\n")
    assert kernels.instruction_sets() == expected


def test_a_processor_without_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_: "flags\t\t: fpu avx f16c\n")
    with pytest.raises(kernels.KernelsUnfit, match="no avx2, fma"):
        kernels.instruction_sets()


def test_another_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.metadata, "version", lambda _: "0.4.0")
    monkeypatch.setattr(kernels.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(kernels.sys, "platform", "linux")
    with pytest.raises(kernels.KernelsUnfit, match=r"llama-cpp-python 0\.4\.0: tried with 0\.3\.36 only"):
        kernels.check_platform()


def test_no_such_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a llama.cpp from elsewhere, of which nobody can tell the version: it computes by itself."""

    def version(name: str) -> str:
        raise kernels.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(kernels.metadata, "version", version)
    monkeypatch.setattr(kernels.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(kernels.sys, "platform", "linux")
    with pytest.raises(kernels.KernelsUnfit, match="llama-cpp-python is not installed"):
        kernels.check_platform()


def test_another_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.sys, "platform", "darwin")
    with pytest.raises(kernels.KernelsUnfit, match="they are for Linux on x86"):
        kernels.check_platform()


def test_not_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernels, "instruction_sets", lambda: [kernels.AVX2])
    monkeypatch.setattr(kernels, "library_path", lambda _: tmp_path / "none.so")
    with pytest.raises(kernels.KernelsUnfit, match=kernels.COMMAND):
        kernels.best_built()


def test_the_best_that_was_built_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An older compiler may have left out the best."""
    monkeypatch.setattr(kernels, "instruction_sets", lambda: [kernels.AVX512, kernels.AVX_VNNI, kernels.AVX2])
    monkeypatch.setattr(kernels, "library_path", lambda of: tmp_path / of.name)
    (tmp_path / "avx2").touch()
    (tmp_path / "avxvnni").touch()
    assert kernels.best_built() == kernels.AVX_VNNI


def built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for libraries. They are made of one source; `make setup` makes whole ones."""
    monkeypatch.setattr(kernels, "source_files", lambda: [kernels.SOURCES / "memory.cpp"])
    package = tmp_path / "llama_cpp"
    (package / "lib").mkdir(parents=True)
    (tmp_path / "include").symlink_to(kernels.package_folder().parent / "include")
    monkeypatch.setattr(kernels, "package_folder", lambda: package)
    return package / "lib"


def test_it_is_built_once_and_an_old_one_goes(
    ggml: Ggml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.engine.llamacpp.kernels import build

    folder = built_in(tmp_path, monkeypatch)
    (folder / "libserving-kernels-0123.so").write_bytes(b"of another version")
    made = build.build()
    assert len(made) == len(kernels.INSTRUCTION_SETS)
    assert {path.name for path in folder.iterdir()} == {path.name for path in made}
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.build() == made


def test_a_compiler_that_does_not_know_an_instruction_set(
    ggml: Ggml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It makes the others."""
    from serving.engine.llamacpp.kernels import build

    folder = built_in(tmp_path, monkeypatch)
    unknown = kernels.InstructionSet("of_2040", kernels.AVX2.needed | {"avx_2040"})
    monkeypatch.setattr(kernels, "INSTRUCTION_SETS", (unknown, kernels.AVX2))
    assert build.build() == [kernels.library_path(kernels.AVX2)]
    assert [path.name for path in folder.iterdir()] == [kernels.library_path(kernels.AVX2).name]
    assert "avx2040" in caplog.text


def test_a_compiler_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from serving.engine.llamacpp.kernels import build

    folder = built_in(tmp_path, monkeypatch)
    monkeypatch.setattr(kernels, "check_platform", lambda: None)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.main() == 1
    assert "llama.cpp keeps its own kernels: no-such-compiler" in capsys.readouterr().err
    assert not list(folder.iterdir())
