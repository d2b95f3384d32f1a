"""Run folders as a run leaves them, for trackers."""

from pathlib import Path

from ray_jobs.runs import RunFolder, StageState
from ray_jobs.search.trials import Trial

SMOKE = Path(__file__).parents[3] / "configs" / "smoke.yaml"
REPORT = {
    "decision": "promote",
    "reason": "better",
    "mean_difference": 0.5,
    "ci95": [0.25, 0.75],
    "p_value": 0.01,
    "wins": 9,
    "ties": 1,
    "losses": 2,
    "num_prompts": 12,
    "num_scored_both": 12,
    "models": {"base": {"mean_score": 3.0}, "candidate": {"mean_score": 3.5}},
}


def trial(number: int, nll: float, status: str = "done") -> Trial:
    curve = [{"step": float(step), "heldout_nll": nll + 1 / step} for step in (3, 6)]
    return Trial(
        f"trial-{number:03d}",
        status,
        {"beta": 0.1 * number},
        "there",
        6,
        1.0,
        None,
        0.5 + nll,
        nll,
        1.0,
        0.1,
        curve,
    )


def done(folder: RunFolder, stage: str, inputs: str = "one") -> None:
    folder.set_state(stage, StageState("done", inputs, {}, {}, "", "", 1.0))
