import pytest

from ray_jobs.orpo.meter import BatchFigures, TrainMeter
from ray_jobs.orpo.metrics import Metrics, TrainingDiverged, check_finite, check_not_exploded


def figures(share: float, loss: float, num_tokens: int = 10, num_padding: int = 0) -> BatchFigures:
    return BatchFigures(
        share, loss, loss, 1.0, 0.5, 0.1, num_tokens, num_tokens + num_padding, num_padding, 200.0
    )


def test_means_weigh_by_share_and_reading_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0])
    monkeypatch.setattr("ray_jobs.orpo.meter.time.perf_counter", lambda: next(clock))
    meter = TrainMeter(matrix_rate=1000.0)
    meter.start_step()
    meter.add(figures(0.25, 4.0, num_padding=10))
    meter.add(figures(0.75, 8.0))
    meter.end_step()
    read = meter.read_log()
    assert read["train_loss"] == pytest.approx(7.0)
    assert read["padding_share"] == pytest.approx(1 / 3)
    assert read["tokens_per_s"] == pytest.approx(10.0)
    assert read["mfu"] == pytest.approx(400 / 2 / 1000)
    assert meter.read_log() == {}
    assert meter.read_evaluation() == read


def test_rows_hold_only_figures_that_there_are() -> None:
    row = Metrics(3, 0.5, 1.0, 1.0, 0.5, 0.1, 0.1, 7, mfu=0.25).as_row()
    assert row["mfu"] == 0.25
    assert "train_loss" not in row


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_divergence_is_named(bad: float) -> None:
    with pytest.raises(TrainingDiverged, match="step 4: loss not finite"):
        check_finite({"loss": bad, "nll": 1.0}, "step 4")


def test_explosion_is_named() -> None:
    check_not_exploded(7.9, 2.0, 4.0, "step 2")
    with pytest.raises(TrainingDiverged, match=r"step 2: loss 8\.1 is over 4 times the first step's 2"):
        check_not_exploded(8.1, 2.0, 4.0, "step 2")
