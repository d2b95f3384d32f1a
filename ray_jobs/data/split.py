"""Disjoint splits: train, held-out and trust pairs, and evaluation prompts that stand in none of them."""

import hashlib
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ray_jobs.data.hub import with_commit
from ray_jobs.data.load import load_pairs, load_prompts
from ray_jobs.data.loaded import Loaded, fingerprint
from ray_jobs.data.near import Near, near_duplicates
from ray_jobs.data.overlap import leak_key
from ray_jobs.data.report import MAX_ROWS_SHOWN, describe
from ray_jobs.data.settings import DataSettings
from ray_jobs.errors import DataError
from ray_jobs.records import Pair, Prompt

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """What a run trains on, validates on, tests its judge on and compares models on."""

    train: tuple[Pair, ...]
    heldout: tuple[Pair, ...]
    trust: tuple[Pair, ...]
    prompts: tuple[Prompt, ...]
    report: dict[str, Any]


def split(settings: DataSettings, seed: int) -> Splits:
    """Reads both data sets and divides them by a hash of seed and prompt, so that file order is no matter.

    Pairs that share a prompt stay in one split. Raises DataError when rows are too few or when
    evaluation prompts stand in the pairs (unless settings.overlap is `drop`).
    """
    sources = with_commit(settings.preferences), with_commit(settings.prompts)
    pairs, prompts = load_pairs(sources[0], seed), load_prompts(sources[1], seed)
    heldout, trust, train = divide_pairs(pairs.rows, settings, seed)
    paired = {leak_key(pair.prompt) for pair in (*heldout, *trust, *train)}
    apart, overlap = _apart(prompts, paired, settings)
    used = (*heldout, *trust, *train)
    apart, dropped = _without_near(apart, used, settings)
    chosen = _first_prompts(apart, settings, seed)
    report = {
        "preferences": describe(sources[0], pairs),
        "prompts": describe(sources[1], prompts),
        "splits": {
            name: {"rows": len(rows), "fingerprint": fingerprint(rows)}
            for name, rows in (("train", train), ("heldout", heldout), ("trust", trust), ("prompts", chosen))
        },
        "overlap": overlap,
        "near_overlap": dropped or _near_report(chosen, used, settings),
    }
    return Splits(train, heldout, trust, chosen, report)


def divide_pairs(
    pairs: Sequence[Pair], settings: DataSettings, seed: int
) -> tuple[tuple[Pair, ...], tuple[Pair, ...], tuple[Pair, ...]]:
    """Held-out, trust and train pairs. Raises DataError, with the numbers, when there are too few."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(leak_key(pair.prompt), []).append(pair)
    waiting = deque(groups[key] for key in _shuffled(groups, seed))
    heldout = _take(waiting, settings.num_heldout_pairs)
    trust = _take(waiting, settings.num_trust_pairs)
    train = _take(waiting, settings.num_train_pairs or sum(len(group) for group in waiting))
    for name, rows, wanted in (
        ("num_heldout_pairs", heldout, settings.num_heldout_pairs),
        ("num_trust_pairs", trust, settings.num_trust_pairs),
        ("num_train_pairs", train, settings.num_train_pairs or 1),
    ):
        if len(rows) < wanted:
            raise DataError(
                f"{settings.preferences.source}: {len(pairs)} usable pairs on {len(groups)} prompts are too "
                f"few: data.{name} takes {wanted} and finds {len(rows)}"
            )
    return heldout, trust, train


def plan(settings: DataSettings) -> dict[str, object]:
    """What will be read, a line a data set, at the cost of a look at local files.

    Raises DataError when a local file is missing.
    """
    from ray_jobs.data.report import outlook

    train = settings.num_train_pairs or "the other"
    return {
        "preferences": outlook(settings.preferences),
        "prompts": outlook(settings.prompts),
        "splits": (
            f"{settings.num_heldout_pairs} pairs held out, {settings.num_trust_pairs} to test the judge, "
            f"{train} to train on; {settings.num_prompts} prompts to compare on"
        ),
    }


def _shuffled(keys: Iterable[str], seed: int) -> list[str]:
    return sorted(keys, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())


def _take(waiting: deque[list[Pair]], number: int) -> tuple[Pair, ...]:
    """Whole prompts until there are enough pairs; what the last one has too many is not used at all."""
    taken: list[Pair] = []
    while waiting and len(taken) < number:
        taken.extend(waiting.popleft())
    return tuple(taken[:number])


def _apart(
    prompts: Loaded[Prompt], paired: set[str], settings: DataSettings
) -> tuple[dict[str, Prompt], dict[str, int]]:
    """Evaluation prompts by key that stand in no pair, each once, and how many were left out why."""
    apart: dict[str, Prompt] = {}
    shared: list[int] = []
    num_repeated = 0
    for prompt, number in zip(prompts.rows, prompts.row_numbers, strict=True):
        key = leak_key(prompt.messages)
        if key in paired:
            shared.append(number)
        elif apart.setdefault(key, prompt) is not prompt:
            num_repeated += 1
    if shared and settings.overlap == "refuse":
        raise DataError(
            f"{settings.prompts.source}: {len(shared)} of {len(prompts.rows)} prompts stand in "
            f"{settings.preferences.source} too (first: row {shared[0]}); "
            "take them out, or leave them out with data.overlap: drop"
        )
    return apart, {"dropped_prompts": len(shared), "repeated_prompts": num_repeated}


def _without_near(
    apart: dict[str, Prompt], pairs: Sequence[Pair], settings: DataSettings
) -> tuple[dict[str, Prompt], dict[str, Any]]:
    """The prompts that are near no pair, and a report; with another setting than `drop`, all and nothing."""
    if settings.near_overlap != "drop":
        return apart, {}
    keys = list(apart)
    found = _near([apart[key] for key in keys], pairs, settings)
    near = {keys[one.prompt] for one in found}
    report = _near_words(found, [apart[key] for key in keys], pairs, settings, num_dropped=len(near))
    return {key: prompt for key, prompt in apart.items() if key not in near}, report


def _near_report(prompts: Sequence[Prompt], pairs: Sequence[Pair], settings: DataSettings) -> dict[str, Any]:
    """How many of the prompts that will be compared on are near a pair. Raises DataError for `refuse`."""
    if settings.near_overlap == "off":
        return {"similarity": None, "found": None, "dropped": 0, "most_similar": []}
    found = _near(prompts, pairs, settings)
    report = _near_words(found, prompts, pairs, settings, num_dropped=0)
    if found and settings.near_overlap == "refuse":
        first = report["most_similar"][0]
        raise DataError(
            f"{settings.prompts.source}: {len(found)} of {len(prompts)} prompts are nearly in "
            f"{settings.preferences.source} (prompt {first['prompt']} and pair {first['pair']}: "
            f"{first['similarity']:.2f}); leave them out with data.near_overlap: drop"
        )
    if found:
        log.info(
            "data     %d of %d evaluation prompts are nearly in the pairs; data.near_overlap: drop leaves "
            "them out",
            len(found),
            len(prompts),
        )
    return report


def _near(prompts: Sequence[Prompt], pairs: Sequence[Pair], settings: DataSettings) -> list[Near]:
    messages = [prompt.messages for prompt in prompts]
    return near_duplicates(messages, [pair.prompt for pair in pairs], settings.near_similarity)


def _near_words(
    found: Sequence[Near],
    prompts: Sequence[Prompt],
    pairs: Sequence[Pair],
    settings: DataSettings,
    *,
    num_dropped: int,
) -> dict[str, Any]:
    most = sorted(found, key=lambda one: (-one.similarity, one.prompt))[:MAX_ROWS_SHOWN]
    return {
        "similarity": settings.near_similarity,
        "found": len(found),
        "dropped": num_dropped,
        "most_similar": [
            {
                "prompt": prompts[one.prompt].id,
                "pair": pairs[one.other].id,
                "similarity": round(one.similarity, 3),
            }
            for one in most
        ],
    }


def _first_prompts(apart: dict[str, Prompt], settings: DataSettings, seed: int) -> tuple[Prompt, ...]:
    if len(apart) < settings.num_prompts:
        raise DataError(
            f"{settings.prompts.source}: {len(apart)} usable prompts that stand in no pair are too few: "
            f"data.num_prompts takes {settings.num_prompts}"
        )
    return tuple(apart[key] for key in _shuffled(apart, seed)[: settings.num_prompts])
