"""One endpoint for all tests here: `serve run` on a config file, in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_endpoint import Endpoint, running


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Iterator[Endpoint]:
    with running(tmp_path_factory.mktemp("endpoint"), model_path) as found:
        yield found
