"""Quantising a GGUF file with llama.cpp."""

import ctypes
import logging
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Literal

from ray_jobs.export.children import run_module
from ray_jobs.export.errors import ExportError
from ray_jobs.export.gguf_file import GgufFile
from ray_jobs.export.settings import EmbeddingFormat, Quantization

log = logging.getLogger(__name__)

LLAMA_FTYPES: dict[Quantization, int] = {
    "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17,
    "q6_k": 18, "bf16": 32,
}  # fmt: skip
"""`llama_ftype` of llama.h."""
GGML_TYPES: dict[EmbeddingFormat, int] = {"f16": 1, "q4_0": 2, "q8_0": 8, "q6_k": 14, "bf16": 30}
"""`ggml_type` of ggml.h."""


def quantize(
    source: Path,
    out: Path,
    quantization: Quantization,
    *,
    pure: bool,
    threads: int,
    embedding: EmbeddingFormat | None = None,
) -> None:
    """Writes `source`, a GGUF in f16 or bf16, to `out` in another format; `out` appears whole.

    `embedding`: the format of the token embedding and the output layer; None: llama.cpp's choice.

    Where rows do not divide into the format's blocks, llama.cpp takes a finer format: logged. The same
    source gives the same bytes whatever the number of threads. Raises ExportError when it fails.
    """
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        arguments = [str(source), str(beside), quantization, str(int(pure)), str(threads), embedding or ""]
        lines = run_module(__name__, arguments)
        for line in lines:
            if "fallback" in line:
                log.warning("%s: %s", out.name, line.strip())
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, out)
    finally:
        beside.unlink(missing_ok=True)


def tensor_formats(path: Path) -> dict[str, int]:
    """Number format -> how many tensors of a GGUF file have it."""
    from gguf.constants import GGMLQuantizationType

    counts = Counter(GGMLQuantizationType(tensor.type).name for tensor in GgufFile(path).tensors.values())
    return dict(sorted(counts.items()))


def main(
    source: str,
    out: str,
    quantization: Quantization,
    pure: str,
    threads: str,
    embedding: EmbeddingFormat | Literal[""],
) -> int:
    """The child process: prints llama.cpp's log; the exit code is llama.cpp's."""
    import llama_cpp

    @llama_cpp.llama_log_callback
    def to_stdout(_level: int, text: bytes, _data: ctypes.c_void_p) -> None:
        sys.stdout.write(text.decode("utf-8", "replace"))

    llama_cpp.llama_log_set(to_stdout, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = LLAMA_FTYPES[quantization]
    params.pure = pure == "1"
    params.nthread = int(threads)
    if embedding:
        params.token_embedding_type = params.output_tensor_type = GGML_TYPES[embedding]
    code = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params))
    if code:
        raise ExportError(f"llama.cpp cannot quantise {source} to {quantization}: code {code}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))  # type: ignore[arg-type]
