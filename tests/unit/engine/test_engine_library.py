"""A build with all CPU variants loads the one that fits; a native build loads nothing more."""

from typing import Any

import pytest

from serving.engine.llamacpp import library


class Ggml:
    """Stands in for libggml: `count` backends are registered; notes what it is asked to load."""

    def __init__(self, count: int) -> None:
        self.count, self.loads = count, 0

    def ggml_backend_reg_count(self) -> int:
        return self.count

    def ggml_backend_load_all(self) -> None:
        self.loads += 1


@pytest.mark.parametrize(("count", "loads"), [(0, 1), (1, 0)])
def test_variants_are_loaded_only_where_there_is_no_backend(
    count: int, loads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llama_cpp._ggml as module

    ggml: Any = Ggml(count)
    monkeypatch.setattr(module, "libggml", ggml)
    library._load_variant()
    assert ggml.loads == loads


def test_this_build_has_a_backend() -> None:
    from llama_cpp._ggml import libggml

    library.start()
    assert libggml.ggml_backend_reg_count() >= 1
