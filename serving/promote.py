"""Change the champion by hand.

    python -m serving.promote RUN_DIR        the run's winner, if its report says `promote`
    python -m serving.promote MODEL.gguf     any model
    python -m serving.promote rollback       the champion before this one
    python -m serving.promote status         what is served, and what was

Exit codes: 0 done · 1 the registry or the model refused it, and the old champion stays · 2 wrong input.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from serving.engine import Engine, EngineError, EngineSettings
from serving.engine.gguf_check import num_parts, trained_tokens
from serving.expectations import record
from serving.files import sha256_of
from serving.loading import smoke
from serving.registry import BaseModel, Champion, Registry, RegistryError

_CONTEXT_TOKENS = 512
"""Enough for a few words."""


class UsageError(Exception):
    """Wrong input: one line."""


@dataclass(frozen=True)
class Candidate:
    """What may become champion."""

    model: Path
    sha256: str
    run: str
    report: Path
    base: BaseModel | None = None


def candidate_of(target: Path, *, force: bool) -> Candidate:
    """A run's candidate, or a model file. Raises UsageError."""
    if target.is_file():
        model = target.resolve()
        _check_whole(model)
        return Candidate(model, sha256_of(model), target.stem, model.parent / "report.json")
    if not target.is_dir():
        raise UsageError(f"{target}: no such run folder or model file")
    report = target / "report" / "report.json"
    said = _read(report)
    decision, winner = said.get("decision"), said.get("candidate", "candidate")
    if decision != "promote" and not force:
        raise UsageError(
            f"{report}: the decision is {decision!r}, not 'promote' (--force promotes all the same)"
        )
    if not isinstance(winner, str) or not re.fullmatch(r"candidate(-\d+)?", winner):
        raise UsageError(f"{report}: 'candidate' is {winner!r}, which names no candidate")
    model, sha256 = _model(target, winner)
    base = (
        BaseModel(*_model(target, "base")) if (target / "models" / "base" / "model.gguf").is_file() else None
    )
    return Candidate(model, sha256, target.resolve().name, report, base)


def _check_whole(model: Path) -> None:
    """Raises UsageError for a part of a model: the registry keeps one file."""
    try:
        parts = num_parts(model)
    except EngineError:  # which loading it tells
        return
    if parts > 1:
        first = re.sub(r"-\d{5}-of-", "-00001-of-", model.name)
        whole = re.sub(r"-\d{5}-of-\d{5}", "", model.name)
        merge = f"llama-gguf-split --merge {first} {whole if whole != first else 'whole.gguf'}"
        raise UsageError(f"{model}: one of {parts} parts of a model; make one file of them: {merge}")


def promote(registry: Registry, candidate: Candidate) -> Champion:
    """Load the candidate in a child process, record what it says, and make it the champion.

    Raises EngineError or RegistryError; the old champion then is what it was.
    """
    expected = first_words(candidate.model)
    return registry.promote(
        candidate.model,
        sha256=candidate.sha256,
        run=candidate.run,
        report=candidate.report,
        base=candidate.base,
        expected=expected,
    )


def first_words(model: Path) -> bytes:
    """What the model says, for those who will serve it. Raises EngineError if it does not load or is mute."""
    context_tokens = min(_CONTEXT_TOKENS, trained_tokens(model) or _CONTEXT_TOKENS)
    settings = EngineSettings(pin=False, slots=1, context_tokens=context_tokens)
    with Engine.open(model, settings) as engine:
        smoke(engine)
        return record(engine)


def status(registry: Registry) -> str:
    """The champion and the ones before it, a line each, newest first; then what was taken back, and why."""
    lines = [
        f"{'previous' if index else 'champion'}  {one.sha256[:12]}  {one.run}  {one.decided_at}  {one.report}"
        for index, one in enumerate(registry.history())
    ]
    lines += [
        f"rolled back  {each['from'][:12]}  {each['at']}  {each['reason']}" for each in registry.rollbacks()
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        return _run(options, Registry.at(options.registry))
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except (RegistryError, EngineError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def _run(options: argparse.Namespace, registry: Registry) -> int:
    if options.target == "status":
        found = status(registry)
        sys.stdout.write(f"{found or f'{registry.file}: there is no champion yet'}\n")
        return 0 if found else 1
    if options.target == "rollback":
        champion = registry.rollback()
    else:
        champion = promote(registry, candidate_of(Path(options.target), force=options.force))
    sys.stdout.write(f"champion is {champion.sha256} of {champion.run}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m serving.promote",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", metavar="RUN_DIR|MODEL.gguf|rollback|status")
    parser.add_argument(
        "--registry", default=os.environ.get("SERVING_REGISTRY", "registry"), metavar="FOLDER"
    )
    parser.add_argument("--force", action="store_true", help="promote whatever the run's report decided")
    return parser


def _model(run: Path, name: str) -> tuple[Path, str]:
    folder = run / "models" / name
    manifest = folder / "manifest.json"
    sha256 = _read(manifest).get("sha256")
    if not isinstance(sha256, str):
        raise UsageError(f"{manifest}: 'sha256' is missing")
    return folder / "model.gguf", sha256


def _read(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}: an object is expected")
    return found


if __name__ == "__main__":
    sys.exit(main())
