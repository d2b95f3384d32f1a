"""One process of a training; run as a script: JOB_JSON. Writes each evaluation as a line of JSON to `log`."""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch

from ray_jobs.orpo.metrics import Metrics
from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.orpo.training import train
from tests.unit.orpo.tiny import text_pairs


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    if job["num_workers"] > 1 or job["settings"].get("deepspeed"):
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=120))
    lines: list[str] = []

    def on_eval(metrics: Metrics, checkpoint_dir: str | None) -> None:
        lines.append(json.dumps({**metrics.as_row(), "checkpoint": checkpoint_dir}))

    train(
        TrainingSettings.model_validate_json(json.dumps(job["settings"])),
        model_dir=job["model_dir"],
        train_pairs=text_pairs(job["num_pairs"]),
        heldout_pairs=text_pairs(7, seed=1),
        output_dir=job["output_dir"],
        on_eval=on_eval,
        resume_from=job["resume_from"],
    )
    Path(job["log"]).write_text("\n".join(lines))
    if torch.distributed.is_initialized():
        # As Ray Train does; at the interpreter's end a thread of the group may abort the process.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
