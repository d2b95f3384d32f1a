"""What llama.cpp computes for given tokens, asked in a child process."""

import ctypes
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_jobs.export.children import run_module
from ray_jobs.export.errors import ExportError

LOG_LEVEL_ERROR = 4
"""`GGML_LOG_LEVEL_ERROR` of ggml.h."""


@dataclass(frozen=True)
class Probe:
    """A rendered chat prompt and what followed it."""

    text: str
    """The prompt, control tokens written out."""
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """llama.cpp's view of a probe."""

    text_ids: tuple[int, ...]
    """The prompt's text as llama.cpp tokenises it."""
    logits: NDArray[np.float32]
    """[T, V]: row t is what comes after the prompt and t answer tokens (T answer tokens, V vocabulary)."""


def read_probes(gguf: Path, probes: Sequence[Probe], threads: int) -> list[Reading]:
    """Raises ExportError when llama.cpp cannot load the file or compute."""
    with tempfile.TemporaryDirectory() as folder:
        asked, told = Path(folder, "probes.json"), Path(folder, "readings.npz")
        asked.write_text(json.dumps([asdict(probe) for probe in probes]), encoding="utf-8")
        run_module(__name__, [str(gguf), str(asked), str(told), str(threads)])
        with np.load(told) as found:
            numbers = range(len(probes))
            return [Reading(tuple(found[f"ids{n}"].tolist()), found[f"logits{n}"]) for n in numbers]


def main(gguf: str, asked: str, told: str, threads: str) -> int:
    """The child process."""
    import llama_cpp

    errors: list[str] = []

    @llama_cpp.llama_log_callback
    def keep_errors(level: int, text: bytes, _data: ctypes.c_void_p) -> None:
        if level == LOG_LEVEL_ERROR:
            errors.append(text.decode("utf-8", "replace").strip())

    llama_cpp.llama_log_set(keep_errors, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(gguf.encode(), params)
    if not model:
        raise ExportError(f"llama.cpp cannot load {gguf}: {'; '.join(errors)}")
    arrays: dict[str, NDArray[Any]] = {}
    for number, probe in enumerate(json.loads(Path(asked).read_bytes())):
        arrays[f"ids{number}"] = np.array(_tokenize(model, probe["text"]), dtype=np.int64)
        arrays[f"logits{number}"] = _logits(model, probe["prompt_ids"], probe["answer_ids"], int(threads))
    np.savez(told, **arrays)  # type: ignore[arg-type]
    return 0


def _tokenize(model: Any, text: str) -> list[int]:
    import llama_cpp

    data = text.encode()
    room = len(data) + 8
    tokens = (llama_cpp.llama_token * room)()
    count = llama_cpp.llama_tokenize(
        llama_cpp.llama_model_get_vocab(model), data, len(data), tokens, room, False, True
    )
    return list(tokens[:count])


def _logits(model: Any, prompt_ids: list[int], answer_ids: list[int], threads: int) -> NDArray[np.float32]:
    """One pass over prompt and answer, keys and values in f32 so that only the weights are rounded."""
    import llama_cpp

    tokens = [*prompt_ids, *answer_ids[:-1]]
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = len(tokens)
    params.n_threads = params.n_threads_batch = threads
    params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise ExportError("llama.cpp cannot open a context")
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    first = len(prompt_ids) - 1
    for position, token in enumerate(tokens):
        batch.token[position], batch.pos[position] = token, position
        batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
        batch.logits[position] = position >= first
    code = llama_cpp.llama_decode(context, batch)
    if code:
        raise ExportError(f"llama_decode: code {code}")
    size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    rows = [
        np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, position), (size,)).copy()
        for position in range(first, len(tokens))
    ]
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    return np.stack(rows)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
