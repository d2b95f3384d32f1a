"""Evaluation prompts that nearly stand in the training data: other words here and there, the same question.

MinHash with locality-sensitive hashing (datasketch) finds candidates without comparing all with all; each
candidate is then measured exactly. Similarity is the Jaccard index of the sets of three words in a row.
Source: Broder, On the resemblance and containment of documents, 1997.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ray_jobs.records import Message

NUM_HASHES = 128
WORDS_IN_A_ROW = 3
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Thai and Lao, Japanese, Chinese: scripts without spaces between words; each letter counts as a word."""
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


@dataclass(frozen=True)
class Near:
    """An evaluation prompt (its index), what it nearly repeats (an index there), and how similar they are."""

    prompt: int
    other: int
    similarity: float


def shingles(messages: Iterable[Message]) -> frozenset[str]:
    """The sets of words in a row of all turns but the system's; case and punctuation do not count."""
    text = " ".join(message.content for message in messages if message.role != "system")
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    if len(words) < WORDS_IN_A_ROW:
        return frozenset({" ".join(words)} if words else ())
    return frozenset(
        " ".join(words[start : start + WORDS_IN_A_ROW]) for start in range(len(words) - WORDS_IN_A_ROW + 1)
    )


def similarity(left: frozenset[str], right: frozenset[str]) -> float:
    """Jaccard index, 0 to 1."""
    return len(left & right) / len(left | right) if left and right else 0.0


def near_duplicates(
    prompts: Sequence[Sequence[Message]], others: Sequence[Sequence[Message]], threshold: float
) -> list[Near]:
    """For each prompt that is at least `threshold` similar to one of the others, the most similar one.

    One at the threshold is found with a probability above 0.99 (0.9999 for 0.8); one below is never named.
    """
    from datasketch import MinHashLSH

    # bands of r hashes: found with probability 1 - (1 - s ** r) ** bands
    rows = 5 if threshold >= 0.7 else 3
    index = MinHashLSH(num_perm=NUM_HASHES, params=(NUM_HASHES // rows, rows))
    theirs = [shingles(messages) for messages in others]
    for number, (own, sketch) in enumerate(zip(theirs, _sketches(theirs), strict=True)):
        if own:
            index.insert(number, sketch, check_duplication=False)
    ours = [shingles(messages) for messages in prompts]
    found = []
    for number, (own, sketch) in enumerate(zip(ours, _sketches(ours), strict=True)):
        candidates = sorted(index.query(sketch)) if own else []
        best = max(candidates, key=lambda other: similarity(own, theirs[other]), default=None)
        if best is not None and (how := similarity(own, theirs[best])) >= threshold:
            found.append(Near(number, best, how))
    return found


def _sketches(sets: Sequence[frozenset[str]]) -> list[object]:
    from datasketch import MinHash

    encoded = [[text.encode("utf-8", "surrogatepass") for text in sorted(one)] for one in sets]
    sketches: list[object] = MinHash.bulk(encoded, num_perm=NUM_HASHES, seed=1)
    return sketches
