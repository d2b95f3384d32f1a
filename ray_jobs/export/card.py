"""The model card of a tuned model: what it was made from, how, and what was found."""

from collections.abc import Mapping
from typing import Any

from ray_jobs.config import Config
from ray_jobs.judging.settings import JudgeSettings

LICENCES: tuple[tuple[str, str], ...] = (
    ("bundled:smollm2", "SmolLM2 is under Apache-2.0."),
    ("huggingfacetb/smollm", "SmolLM is under Apache-2.0."),
    (
        "meta-llama/llama-3",
        "Llama 3 is under Meta's community licence: what is made from it is distributed with that licence, a "
        "name that begins with Llama, and the words “Built with Llama”.",
    ),
    ("mistralai/mistral-small-instruct-2409", "Under the Mistral Research License: no commercial use."),
    ("microsoft/phi-3", "Phi-3 and Phi-3.5 are under the MIT licence."),
    ("google/gemma", "Gemma is under Google's Gemma terms of use, which are passed on with the model."),
    ("qwen/", "Qwen's licence differs by size: see the base's page."),
)
"""Beginning of a base's name, in small letters -> note."""


def licence_note(base: str) -> str:
    known = next((note for start, note in LICENCES if base.lower().startswith(start)), None)
    return known or f"The licence of the base applies: see where `{base}` comes from."


def model_card(
    config: Config,
    report: Mapping[str, Any],
    manifest: Mapping[str, Any],
    data: Mapping[str, Any],
    best: Mapping[str, Any],
) -> str:
    """README.md of the model's folder, in the form that model hubs read.

    `report`, `manifest` and `data` are the run's JSON files, `best` the settings of the best trial.
    """
    base, training = config.model.base, config.training
    commit = manifest["base"]["revision"]
    revision = f" at `{commit}`" if commit else ""
    settings = {
        "step": f"ORPO, {training.num_steps} steps of {training.pairs_per_step} pairs",
        "learning rate": training.learning_rate,
        "beta": training.beta,
        "adapters": f"LoRA rank {training.lora.rank}" if training.lora else "none, all weights",
        "longest pair": f"{training.max_pair_tokens} tokens",
        "seed": config.seed,
    } | {f"best trial: {name}": value for name, value in best.items()}
    quantization = manifest["recipe"]["quantization"]
    lines = [
        *_front_matter(config),
        f"# {config.name}",
        "",
        f"`{base}`{revision}, preference-tuned with ORPO, as {quantization} GGUF for llama.cpp.",
        "",
        "## Verdict",
        "",
        f"**{report['decision']}**: {report['reason']}",
        "",
        *_verdict_lines(report, config.judge),
        "",
        "## Data",
        "",
        *_data_lines(data),
        "",
        "## Settings",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in settings.items()),
        "",
        "## File",
        "",
        _file_line(manifest),
        "",
        "## Licence",
        "",
        f"{licence_note(base)} The data sets' own terms apply as well.",
        "",
        "## Limits",
        "",
        "The verdict holds for the prompts and the judge above. The model was not tested for safety.",
    ]
    return "\n".join(lines) + "\n"


def _file_line(manifest: Mapping[str, Any]) -> str:
    parity = manifest["parity"]
    return (
        f"`model.gguf`, {manifest['bytes'] / 1e6:.0f} MB, sha256 `{manifest['sha256']}`. In llama.cpp it "
        f"computes what the merged model computes in transformers: {parity['identical']} of "
        f"{parity['tokens']} greedy tokens equal, {parity['near_ties']} ties, largest logit error "
        f"{parity['max_relative_logit_error']:.2g} standard deviations."
    )


def _front_matter(config: Config) -> list[str]:
    """Only what a hub can resolve: bundled and local sources have no page there."""
    sources = (config.data.preferences, config.data.prompts)
    datasets = [source.source for source in sources[:1] if source.kind == "hub"]
    base = config.model.base
    on_hub = base.count("/") == 1 and not base.startswith((".", "/", "~", "bundled:"))
    lines = ["---", "library_name: gguf", "pipeline_tag: text-generation"]
    lines += ["tags: [orpo, preference-tuning, gguf]"]
    lines += [f"base_model: {base}"] if on_hub else []
    lines += ["datasets:", *(f"  - {name}" for name in datasets)] if datasets else []
    return [*lines, "---", ""]


def _verdict_lines(report: Mapping[str, Any], judge: JudgeSettings) -> list[str]:
    lines = ["| | |", "| --- | --- |", f"| prompts scored for both | {report['num_scored_both']} |"]
    if report.get("mean_difference") is not None and report.get("ci95"):
        low, high = report["ci95"]
        lines.append(
            f"| score, tuned minus base | {report['mean_difference']:+.3f} ({low:+.3f} to {high:+.3f}) |"
        )
        lines.append(f"| wins, ties, losses | {report['wins']}, {report['ties']}, {report['losses']} |")
    checks = (report.get("program_checks") or {}).get("overall")
    if checks:
        shares = f"{checks['base']:.1%} to {checks['candidate']:.1%} of {checks['n']}"
        lines.append(f"| right answers, checked by a program | {shares} |")
    trust = report.get("judge_trust") or {}
    adapter = f" with the adapter `{judge.adapter}`" if judge.adapter else ""
    trusted = "trusted" if trust.get("trusted") else "not trusted"
    lines.append(f"| judge | `{judge.model}`{adapter}, by {', '.join(judge.metrics)}: {trusted} |")
    return lines


def _data_lines(data: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, use in (("preferences", "trained on"), ("prompts", "compared on")):
        part = data[name]
        revision = f" at `{part['revision']}`" if part["revision"] else ""
        lines.append(
            f"- {use}: `{part['source']}`{revision}, {part['rows_used']} of {part['rows_in']} rows usable"
        )
    splits = {name: split["rows"] for name, split in data["splits"].items()}
    lines.append(f"- splits: {', '.join(f'{name} {rows}' for name, rows in splits.items())}")
    return lines
