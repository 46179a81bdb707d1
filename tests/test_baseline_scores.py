"""Scores and residuals of the documented least-squares estimator."""

import numpy as np
import pytest

from bayes_sched import InputError, ThroughputSaturationModel
from tests.baseline_server import (
    predicted_ms,
    simulated,
)


@pytest.fixture(scope="module")
def fitted() -> ThroughputSaturationModel:
    return ThroughputSaturationModel().fit(simulated())


def test_scores_are_what_their_names_say(fitted: ThroughputSaturationModel) -> None:
    steps = simulated(300, seed=8)
    observed, predicted = steps["latency_ms"].to_numpy(), predicted_ms(fitted, steps)
    scores = fitted.metrics(steps)
    error = predicted - observed
    assert scores.rmse_ms == pytest.approx(np.sqrt((error**2).mean()))
    assert scores.mae_ms == pytest.approx(np.abs(error).mean())
    assert scores.mape == pytest.approx((np.abs(error) / observed).mean())
    assert scores.r2 == pytest.approx(1.0 - (error**2).sum() / ((observed - observed.mean()) ** 2).sum())
    assert fitted.score(steps) == scores.r2
    assert "Over 300 steps" in scores.text
    assert scores.table["num_steps"].item() == 300


def test_idle_steps_cannot_be_scored(fitted: ThroughputSaturationModel) -> None:
    steps = simulated(60)
    steps.loc[3, ["batch_size", "total_tokens"]] = 0.0
    with pytest.raises(InputError, match="clean_steps removes idle steps"):
        fitted.score(steps)


def test_residuals_of_the_right_model_are_unremarkable(fitted: ThroughputSaturationModel) -> None:
    found = fitted.residuals(simulated(seed=9))
    assert len(found.residual_ms) == 1500
    assert found.table.groupby("by")["num_steps"].sum().tolist() == [1500, 1500]
    # Each class has 200 steps or more: its mean residual is known to 0.5 / sqrt(200) = 0.035 ms.
    assert found.table["mean_ms"].abs().max() < 0.15
    assert found.jarque_bera_p > 0.001
    assert found.ljung_box_p > 0.001
    assert abs(found.skewness) < 0.3
    assert "standard errors are too small" not in found.text


def test_residuals_show_what_the_model_does_not_know(fitted: ThroughputSaturationModel) -> None:
    steps = simulated(seed=9)
    drift = 3.0 * np.sin(np.arange(len(steps)) / 50.0)
    slow = np.where(steps["total_tokens"] > 1000, 6.0, 0.0)
    found = fitted.residuals(steps.assign(latency_ms=steps["latency_ms"] + drift + slow))
    assert found.autocorrelation.loc[1] > 0.4
    assert found.ljung_box_p < 1e-6
    assert "standard errors are too small" in found.text
    worst = found.table.iloc[int(np.argmax(found.table["mean_ms"].to_numpy(float)))]
    assert worst["by"] == "total_tokens"
    assert worst["high"] == steps["total_tokens"].max()
