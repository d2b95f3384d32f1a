"""What the endpoint's benchmark makes of its measurements."""

from __future__ import annotations

import pytest

from benchmarks.endpoint import Load, compared
from benchmarks.endpoint_faults import corrupted
from benchmarks.endpoint_servers import LLAMA_CPP_SERVER, LLAMA_SERVER


def loads(*rates: float, first_s: float) -> list[Load]:
    return [Load(rate, first_s, 2 * first_s, 0) for rate in rates]


def test_ratios_are_medians_within_rounds_and_ttft_is_beside_the_faster_peer() -> None:
    rounds = {"endpoint": loads(10, 20, 60, first_s=1.0), LLAMA_CPP_SERVER: loads(5, 5, 5, first_s=10.0)}
    figures = compared(rounds)
    assert figures["tokens_per_s_endpoint"] == 20
    assert figures["throughput_vs_llama_cpp_server"] == 4
    assert figures["ttft_p50_ratio"] == figures["ttft_p50_ratio_vs_llama_cpp_server"] == 0.1
    figures = compared({**rounds, LLAMA_SERVER: loads(10, 10, 10, first_s=0.5)})
    assert figures["throughput_vs_llama_server"] == 2
    assert figures["ttft_p99_ratio"] == figures["ttft_p99_ratio_vs_llama_server"] == 2
    assert figures["ttft_p50_ratio_vs_llama_cpp_server"] == 0.1


def test_corrupt_candidates_differ_from_the_model_and_from_each_other() -> None:
    keys = b"general.architecture llama.block_count llama.embedding_length tokenizer.ggml.tokens"
    good = b"GGUF" + bytes(60) + keys + b"token_embd.weight blk.0.attn_q.weight" + bytes(20_000)
    found = list(corrupted(good))
    assert len(found) == len({*found, good}) - 1 == 20


@pytest.mark.parametrize("peers", [{}, {LLAMA_SERVER: loads(1.0, first_s=1.0)}])
def test_without_a_peer_there_is_no_ratio(peers: dict[str, list[Load]]) -> None:
    figures = compared({"endpoint": loads(1.0, first_s=1.0), **peers})
    assert ("ttft_p50_ratio" in figures) == bool(peers)
