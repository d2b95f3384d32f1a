import uuid
from pathlib import Path

import pytest


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty folder in a store in memory, seen from a node that keeps nothing yet."""
    monkeypatch.setenv("ORPO_CACHE", str(tmp_path / "node"))
    return f"memory://bucket-{uuid.uuid4().hex}/runs"
