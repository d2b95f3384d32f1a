"""Why something failed on the cluster, in one line."""

import re

CAUSE = re.compile(
    r"^(?:[A-Za-z_]\w*\.)*([A-Za-z_]\w*(?:Error|Exception|Failed|Diverged)): (.+)", re.MULTILINE
)


def first_cause(text: str) -> str:
    """What a worker raised first, out of the text that Ray makes of it and of what it led to."""
    found = [match for match in CAUSE.finditer(text) if not match[0].startswith("ray.")]
    if not found:
        lines = text.strip().splitlines()
        return lines[-1].strip() if lines else "failed on the cluster"
    name, message = found[0].groups()
    return message if name == "StageFailed" else f"{name}: {message}"
