"""The table of docs/models.md: what holds for each family, found on small random models of its shape.

python -m tests.integration.export.family_table          prints it
python -m tests.integration.export.family_table --write  puts it into docs/models.md
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ray_jobs.export.parity import Parity
from tests.integration.export.export_tiny_models import FAMILIES, make_model

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
HEADINGS = (
    "family",
    "model type",
    "trains",
    "exports",
    "parity error",
    "greedy tokens equal",
    "template",
    "serves",
)


@dataclass(frozen=True)
class FamilyRow:
    """One line. `trains`: the step that was used; `parity_error`: in standard deviations of the logits."""

    family: str
    model_type: str
    trains: str
    quantization: str
    parity: Parity
    serves: bool

    def cells(self) -> tuple[str, ...]:
        return (
            self.family,
            f"`{self.model_type}`",
            f"yes, {self.trains} step",
            f"yes, {self.quantization}",
            f"{self.parity.max_relative_compute_error:.1g}",
            f"{self.parity.identical} of {self.parity.tokens}",
            "equal",
            "yes" if self.serves else "no",
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
    exact = ExportSettings(quantization="f16", parity_prompts=8, parity_tokens=64)
    # one export proves tokenizer, chat template, logits and greedy tokens, or raises
    parity = export_model(base, adapter, folder / "out", exact, lambda _: None).parity
    return FamilyRow(
        family,
        read_config(model_dir)["model_type"],
        step,
        exact.quantization,
        parity,
        serves(folder / "out" / "model.gguf"),
    )


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


def serves(model: Path) -> bool:
    """Whether the engine answers a chat with the exported file."""
    from serving.engine import Engine, EngineSettings
    from serving.engine.types import Request, Sampling

    settings = EngineSettings(pin=False, slots=1, context_tokens=256)
    with Engine.open(model, settings) as engine:
        tokens = engine.chat.render([{"role": "user", "content": "Say hello."}])
        (result,) = engine.generate([Request("1", tuple(tokens), Sampling(max_tokens=8))])
    # a random model may end its answer at once
    return result.error is None and result.finish_reason in ("length", "stop")


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
    text = table(rows)
    sys.stdout.write(text)
    if "--write" in sys.argv[1:]:
        before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        after = rest.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
