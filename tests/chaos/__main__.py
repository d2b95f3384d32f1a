"""Kills at random times over whole pipelines: `python -m tests.chaos --kills 100 --seed 0 [--real]`

Each pipeline is run again by the same command until it ends with exit code 0, and is then compared with one
that nothing happened to. Prints a JSON report; exit code 1 when anything was lost, doubled or changed.
"""

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path

from tests.chaos.harness import Chaos
from tests.chaos.results import compare


def main() -> int:
    parser = argparse.ArgumentParser(description="Kills processes of whole pipelines and looks what is lost.")
    parser.add_argument("--kills", type=int, default=20, help="kills in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mean-s", type=float, default=4.0, help="mean time between kills")
    parser.add_argument("--max-s", type=float, default=None, help="no kill is begun after this time")
    parser.add_argument("--real", action="store_true", help="configs/smoke.yaml with its real model")
    parser.add_argument("--folder", type=Path, help="keep the runs here, and go on with what is there")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="FIELD=VALUE")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        chaos = Chaos(
            folder, real=options.real, seed=options.seed, mean_s=options.mean_s, changes=options.changes
        )
        unbroken = chaos.unbroken()
        differences = []
        while chaos.num_kills < options.kills and not chaos.later_than(options.max_s):
            broken = chaos.broken(options.kills - chaos.num_kills, options.max_s)
            differences += compare(unbroken, broken)
        report = {**chaos.report(), "differences": differences}
    text = json.dumps(report, indent=2)
    sys.stdout.write(text + "\n")
    if options.json:
        options.json.write_text(text + "\n")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
