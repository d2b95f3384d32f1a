"""A replica that serves the champion of a registry in a store, with the real model."""

from pathlib import Path

import pytest

from serving.engine import EngineSettings, Request, Sampling
from serving.files import sha256_of
from serving.host import ModelHost
from serving.promote import candidate_of, promote
from serving.registry import Registry
from serving.storage.remote import Remote

REGISTRY = "s3://bucket/real-registry"


def test_a_fresh_node_serves_the_champion(
    node: dict[str, str], tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted = promote(Registry.at(REGISTRY), candidate_of(model_path, force=False))
    assert set(Remote(REGISTRY).listing()) == {
        "champion.json",
        f"models/{promoted.sha256}/model.gguf",
        f"models/{promoted.sha256}/expected.json",
    }
    monkeypatch.setenv("ORPO_CACHE", str(tmp_path / "another-node"))
    host = ModelHost(Registry.at(REGISTRY), EngineSettings(pin=False, context_tokens=512, slots=1))
    try:
        assert host.follow()
        assert not host.follow()
        champion = host.enter(None)
        prompt = champion.engine.chat.render([{"role": "user", "content": "Name a colour."}])
        stream = champion.engine.submit(Request("r", prompt, Sampling(max_tokens=4)))
        assert stream.result(60).num_answer_tokens == 4
        host.leave(champion)
    finally:
        host.close()
    copies = list((tmp_path / "another-node").rglob("*.gguf"))
    assert [sha256_of(copy) for copy in copies] == [promoted.sha256]
