"""The table of docs/models.md: what holds for each family, found on small random models of its shape.

python -m tests.integration.export.family_table          prints it
python -m tests.integration.export.family_table --write  puts it into docs/models.md
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ray_jobs.export.base import BaseModel
from ray_jobs.export.logits import Probe
from ray_jobs.export.parity import CHATS, Parity, teacher_forced
from tests.integration.export.export_tiny_models import FAMILIES, make_model

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
HEADINGS = (
    "family",
    "model type",
    "trains",
    "exports",
    "error in F32",
    "greedy tokens equal in F32",
    "in F16",
    "equal in F16",
    "template",
    "served alike",
)


@dataclass(frozen=True)
class Served:
    """The engine's greedy answers, several at once, beside what transformers finds likeliest."""

    tokens: int
    identical: int
    largest_gap: float
    """By which a token that the engine chose is less likely than the likeliest: in standard deviations of the
    logits at its position."""


@dataclass(frozen=True)
class FamilyRow:
    """One line. `trains`: the step that was used."""

    family: str
    model_type: str
    trains: str
    quantization: str
    exact: Parity
    """Of the same model written in F32, where only the order of sums differs."""
    parity: Parity
    served: "Served"

    def cells(self) -> tuple[str, ...]:
        return (
            self.family,
            f"`{self.model_type}`",
            f"yes, {self.trains} step",
            f"yes, {self.quantization}",
            f"{self.exact.max_relative_compute_error:.1g}",
            f"{self.exact.identical} of {self.exact.tokens}",
            f"{self.parity.max_relative_compute_error:.1g}",
            f"{self.parity.identical} of {self.parity.tokens}",
            "equal",
            f"{self.served.identical} of {self.served.tokens}",
        )


def family_row(family: str, folder: Path) -> FamilyRow:
    """Trains, exports with parity and serves a small model of the family; raises where one of them fails."""
    from ray_jobs.export.base import resolve_base
    from ray_jobs.export.export import export_model
    from ray_jobs.export.families import read_config
    from ray_jobs.export.settings import ExportSettings, ModelSettings

    model_dir = make_model(family, folder / family)
    base = resolve_base(ModelSettings(base=str(model_dir)), folder / "cache")
    step, adapter = trained(str(model_dir), folder / "training")
    settings = ExportSettings(quantization="f16", parity_prompts=8, parity_tokens=64)
    # one export proves tokenizer, chat template, logits and greedy tokens, or raises
    parity = export_model(base, adapter, folder / "out", settings, lambda _: None).parity
    return FamilyRow(
        family,
        read_config(model_dir)["model_type"],
        step,
        settings.quantization,
        in_float32(base, adapter, folder / "f32.gguf"),
        parity,
        served(folder / "out" / "model.gguf", model_dir, adapter),
    )


def in_float32(base: BaseModel, adapter: Path, out: Path) -> Parity:
    """The merged model as F32, which is no format of an export, in llama.cpp and in transformers."""
    from ray_jobs.export.adapter import Adapter
    from ray_jobs.export.families import full_config
    from ray_jobs.export.gguf_file import GgufFile
    from ray_jobs.export.gguf_tensors import layout_of
    from ray_jobs.export.gguf_writer import write_gguf
    from ray_jobs.export.merge import load_merged, merged_state
    from ray_jobs.export.parity import check_parity

    model = load_merged(base.hf_dir, Adapter(adapter, frozenset()))
    layout = layout_of(full_config(base.hf_dir), str(base.hf_dir))
    write_gguf(GgufFile(base.gguf), merged_state(model), layout, out, "f32")
    return check_parity(model, base.hf_dir, out, "f32", num_prompts=8, num_tokens=64, threads=2)


def trained(model_dir: str, folder: Path) -> tuple[str, Path]:
    """Two ORPO steps with adapters: the step that was used, and the adapter."""
    from ray_jobs.orpo.settings import TrainingSettings
    from ray_jobs.orpo.training import train
    from tests.unit.orpo.tiny import text_pairs

    settings = TrainingSettings(
        num_steps=2, pairs_per_step=4, learning_rate=1e-2, precision="fp32", compile="off"
    )
    done = train(
        settings,
        model_dir=model_dir,
        train_pairs=text_pairs(8),
        heldout_pairs=text_pairs(4, seed=1),
        output_dir=str(folder),
        on_eval=lambda _metrics, _folder: None,
    )
    return done.step_used, Path(done.checkpoint_dir)


def served(model: Path, model_dir: Path, adapter: Path) -> Served:
    """The engine answers all chats at once; transformers, with the merged model, reads along."""
    from ray_jobs.export.adapter import Adapter
    from ray_jobs.export.merge import load_merged
    from serving.engine import Engine, EngineSettings
    from serving.engine.types import Request, Sampling

    with Engine.open(model, EngineSettings(pin=False, slots=4, context_tokens=256)) as engine:
        prompts = [tuple(engine.chat.render(list(chat))) for chat in CHATS]
        requests = [Request(str(n), prompt, Sampling(max_tokens=64)) for n, prompt in enumerate(prompts)]
        answers = [result.tokens for result in engine.generate(requests)]
    merged = load_merged(model_dir, Adapter(adapter, frozenset()))
    gaps: list[float] = []
    for prompt, answer in zip(prompts, answers, strict=True):
        if answer:
            logits_TV = teacher_forced(merged, Probe("", prompt, answer))
            chosen_T = logits_TV[np.arange(len(answer)), list(answer)]
            gaps += list((logits_TV.max(axis=1) - chosen_T) / logits_TV.std(axis=1))
    return Served(len(gaps), sum(bool(gap == 0) for gap in gaps), float(max(gaps)))


def table(rows: list[FamilyRow]) -> str:
    lines = [HEADINGS, ("---",) * len(HEADINGS), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def written_table() -> str:
    """What stands in the page between the marks."""
    return PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip("\n") + "\n"


def main() -> None:
    rows = []
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(family_row(family, Path(folder)))
        sys.stdout.write(f"{table(rows).splitlines()[-1]}\n")
        sys.stdout.flush()
    text = table(rows)
    if "--write" in sys.argv[1:]:
        before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        after = rest.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
