import logging
from types import SimpleNamespace

import pytest


def test_pairs_that_many_trials_do_not_use_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("ray.tune")
    from ray_jobs.stages import trial_log

    log = trial_log.TrialLog(num_trials=3, num_steps=40)
    for number, unused in enumerate((10, 11, 11)):
        trial = SimpleNamespace(trial_id=f"ab12_0000{number}", config={})
        counts = {"train_pairs": 80, "heldout_pairs": 100 - 80 - unused, "unused_pairs": unused}
        log.on_trial_result(trial=trial, result={"step": 20, **counts})
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert lines == ["tune     trial 1 does not use 11 of 100 pairs; its log says why"]


def test_time_left_follows_the_steps_of_all_trials(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray.tune")
    from ray_jobs.stages import trial_log

    clock = iter([0.0, 60.0, 120.0]).__next__
    monkeypatch.setattr(trial_log.time, "monotonic", clock)
    log = trial_log.TrialLog(num_trials=2, num_steps=40)
    first, second = (SimpleNamespace(trial_id=f"ab12_0000{number}", config={}) for number in (0, 1))
    with caplog.at_level(logging.INFO, "ray_jobs.stages.trial_log"):
        log.on_trial_result(trial=second, result={"step": 20, "heldout_accuracy": 0.5, "heldout_nll": 1.0})
        log.on_trial_complete(trial=first)
        log.on_trial_error(trial=second)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("tune     trial 1 step 20/40 · held-out accuracy 0.500, nll 1.000")
    assert lines[1] == "tune     trial 0 done · 1 of 2 trials · about 20 s left"
    assert lines[2] == "tune     trial 1 FAILED · 2 of 2 trials"
