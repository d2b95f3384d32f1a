"""What a run will read and write, in tokens, before it starts: from a sample of its own data.

Counts texts as the base's tokenizer does, without the chat template's own tokens. Upper bounds: trials may be
stopped early, answers may end before their limit.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs.config import Config
from ray_jobs.data.report import column_line, first_lines, spread
from ray_jobs.records import Message, Pair, Prompt
from ray_jobs.search.trials import most_pairs_per_step, most_steps, num_drawn

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SAMPLE = 2000
"""Rows of a split that are counted."""


def load_tokenizer(hf_dir: Path) -> "Tokenizer | None":
    """The tokenizer of a model folder, without the model's own code; None where it is in another format."""
    from tokenizers import Tokenizer

    path = hf_dir / "tokenizer.json"
    return Tokenizer.from_file(str(path)) if path.is_file() else None


def token_report(
    config: Config, train: Sequence[Pair], prompts: Sequence[Prompt], tokenizer: "Tokenizer"
) -> dict[str, Any]:
    """Lengths in tokens, what does not fit, and the tokens of each stage, as plain JSON values."""
    sample = train[:SAMPLE]
    prompt = _counts(tokenizer, [_text(pair.prompt) for pair in sample])
    chosen = _counts(tokenizer, [pair.chosen for pair in sample])
    rejected = _counts(tokenizer, [pair.rejected for pair in sample])
    asked = _counts(tokenizer, [_text(one.messages) for one in prompts[:SAMPLE]])
    whole = [p + max(c, r) for p, c, r in zip(prompt, chosen, rejected, strict=True)]
    packed = [p + c + r for p, c, r in zip(prompt, chosen, rejected, strict=True)]
    fitting = [tokens for tokens, size in zip(packed, whole, strict=True) if size <= _pair_limit(config)]
    room = config.engine.settings.context_tokens - config.generation.max_answer_tokens
    return {
        "rows_counted": {"pairs": len(sample), "prompts": len(asked)},
        "lengths": {
            "pair prompt": spread(prompt),
            "chosen": spread(chosen),
            "rejected": spread(rejected),
            "evaluation prompt": spread(asked),
        },
        "share_of_pairs_too_long": _share(size > _pair_limit(config) for size in whole),
        "share_of_prompts_too_long": _share(size > room for size in asked),
        "forecast": forecast(config, _mean(fitting), _mean(asked)),
    }


def forecast(config: Config, tokens_per_pair: float, tokens_per_prompt: float) -> dict[str, int]:
    """Most tokens of each stage. A pair's prompt counts once: it is computed once (training.step packed)."""
    training, search, judge = config.training, config.search, config.judge
    pairs = most_steps(training, search) * most_pairs_per_step(training, search)
    number, models = config.data.num_prompts, num_answering(config)
    answers = models * number
    judged = num_judged(config, number, models, num_known(config))
    feedback = judge.max_feedback_tokens if judge.feedback else 1
    return {
        "training": round(num_drawn(search) * pairs * tokens_per_pair),
        "generation, prompts": round(answers * tokens_per_prompt),
        "generation, answers": answers * config.generation.max_answer_tokens,
        "judging, feedback": judged * len(judge.metrics) * feedback,
    }


def num_answering(config: Config) -> int:
    """Models that answer: the base and the candidates."""
    return 1 + config.verdict.num_candidates


def num_known(config: Config) -> int:
    """Pairs at most that the judge is tested on."""
    return min(config.judge.trust.num_pairs, config.data.num_trust_pairs)


def num_judged(config: Config, num_prompts: int, num_models: int, num_pairs: int) -> int:
    """Answers that each metric judges: of all models, both of each known pair, and those judged again."""
    again = min(num_pairs, config.judge.trust.num_repeats)
    return num_models * num_prompts + 2 * (num_pairs + again)


def report_markdown(report: dict[str, Any]) -> str:
    """The data report for people."""
    lines = ["# Data of this run", ""]
    for name in ("preferences", "prompts"):
        lines += [f"## {name.capitalize()}", "", *_source_lines(report[name]), ""]
    lines += ["## Splits", "", "| split | rows |", "| --- | ---: |"]
    lines += [f"| {name} | {split['rows']} |" for name, split in report["splits"].items()]
    lines += ["", *_overlap_lines(report)]
    if tokens := report.get("tokens"):
        lines += ["", *_token_lines(tokens)]
    return "\n".join(lines) + "\n"


def _source_lines(part: dict[str, Any]) -> list[str]:
    revision = f" at `{part['revision']}`" if part["revision"] else ""
    subset = f", `{part['config']}`," if part["config"] else ""
    lines = [
        f"`{part['source']}`{subset}{revision}: {part['rows_in']} rows, {part['rows_used']} used, "
        f"{part['rows_quarantined']} quarantined, {part['rows_excluded']} excluded by source, "
        f"{part['rows_sampled_out']} left out by the sample.",
    ]
    if part["repeated_ids"]:
        repeated = f"{part['repeated_ids']} rows have an `id` that an earlier one has"
        lines += ["", f"{repeated}: they go by a hash of their content."]
    lines += _reading_lines(part)
    if part["quarantined"]:
        lines += ["", "| reason | rows |", "| --- | ---: |"]
        lines += [f"| {reason} | {count} |" for reason, count in part["quarantined"].items()]
    lines += ["", "| source | rows used |", "| --- | ---: |"]
    lines += [f"| {_cell(source) or '(none)'} | {count} |" for source, count in part["by_source"].items()]
    return [*lines, "", *_length_lines("characters", part["characters"])]


def _reading_lines(part: dict[str, Any]) -> list[str]:
    """What the columns were read as, with the first row as a block of code, which no text gets out of."""
    columns = _cell(column_line(part))
    lines = ["", f"{columns[:1].upper()}{columns[1:]}. The first row as it was read:", ""]
    lines += [f"    {line}" for line in first_lines(part)]
    if part["prompts_cut_off"]:
        rows = f"In {part['prompts_cut_off']} rows both answers began with the prompt"
        lines += ["", f"{rows}: it was cut off."]
    if part["first_problem"]:
        lines += ["", f"First of the rows that are not used: {_cell(part['first_problem'])}."]
    return lines


def _length_lines(unit: str, lengths: dict[str, dict[str, int]]) -> list[str]:
    rows = [
        f"| {name} | {one['p50']} | {one['p95']} | {one['max']} |" for name, one in lengths.items() if one
    ]
    return [f"| {unit} | median | 95 % below | longest |", "| --- | ---: | ---: | ---: |", *rows]


def _overlap_lines(report: dict[str, Any]) -> list[str]:
    exact, near = report["overlap"], report["near_overlap"]
    lines = [
        f"Evaluation prompts that stand in the pairs: {exact['dropped_prompts']}, left out. "
        f"Repeated ones: {exact['repeated_prompts']}, used once."
    ]
    if near["found"] is None:
        return [*lines, "Near duplicates were not looked for (`data.near_overlap: off`)."]
    done = f", {near['dropped']} of them left out" if near["dropped"] else ""
    return [*lines, f"At least {near['similarity']:.0%} similar to a pair's prompt: {near['found']}{done}."]


def _token_lines(tokens: dict[str, Any]) -> list[str]:
    counted = tokens["rows_counted"]
    return [
        "## Tokens",
        "",
        f"Counted on {counted['pairs']} pairs and {counted['prompts']} prompts, without the chat template's.",
        "",
        *_length_lines("tokens", tokens["lengths"]),
        "",
        f"Pairs longer than `training.max_pair_tokens`: {tokens['share_of_pairs_too_long']:.1%}. "
        f"Prompts that leave no room for the answer: {tokens['share_of_prompts_too_long']:.1%}.",
        "",
        "## Forecast",
        "",
        "Most tokens of each stage; `orpo doctor` says how many this machine does a second.",
        "",
        "| stage | tokens |",
        "| --- | ---: |",
        *(f"| {name} | {count:,} |" for name, count in tokens["forecast"].items()),
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _pair_limit(config: Config) -> int:
    return config.training.max_pair_tokens


def _text(messages: Sequence[Message]) -> str:
    return "\n".join(message.content for message in messages)


def _counts(tokenizer: "Tokenizer", texts: Sequence[str]) -> list[int]:
    encoded = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [len(one) for one in encoded]


def _share(hits: Any) -> float:
    found = list(hits)
    return round(sum(found) / len(found), 4) if found else 0.0


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0
