"""When two prompts count as the same, so that no split sees what another one trains on."""

import hashlib
import unicodedata
from collections.abc import Iterable

from ray_jobs.records import Message


def leak_key(messages: Iterable[Message]) -> str:
    """Hash of a conversation that case, spacing, Unicode form and system turns do not change.

    Equal conversations have equal keys, so prompts that differ by key also differ by hash.
    """
    digest = hashlib.sha256()
    for message in messages:
        if message.role == "system":
            continue
        text = " ".join(unicodedata.normalize("NFKC", message.content).casefold().split())
        data = f"{message.role}\n{text}".encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()
