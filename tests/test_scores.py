"""Proper scores: closed forms, propriety, and what their numbers mean."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bayes_sched.arrays import Floats
from bayes_sched.checks import scores as scoring
from bayes_sched.checks.scores import LEVELS


def gaussian_crps(z: Floats) -> Floats:
    """The closed form for a standard Gaussian (Gneiting and Raftery 2007, section 4.2)."""
    score: Floats = z * (2.0 * stats.norm.cdf(z) - 1.0) + 2.0 * stats.norm.pdf(z) - 1.0 / np.sqrt(np.pi)
    return score


def rows_of(quantiles: Floats, num: int) -> Floats:
    return np.broadcast_to(quantiles, (num, len(LEVELS)))


def test_levels_are_symmetric_and_their_weights_share_out_the_unit_interval() -> None:
    weights = scoring.quantile_weights()
    assert LEVELS + LEVELS[::-1] == pytest.approx(np.ones(len(LEVELS)))
    assert weights.sum() == pytest.approx(1.0)
    assert weights @ LEVELS == pytest.approx(0.5)


def test_the_crps_of_a_gaussian_is_near_its_closed_form_and_its_average_within_one_percent() -> None:
    z = np.array([-6.0, -2.0, -0.3, 0.0, 0.7, 1.5, 4.0])
    found = scoring.crps(z, rows_of(stats.norm.ppf(LEVELS), len(z)))
    assert found == pytest.approx(gaussian_crps(z), abs=0.006)
    z = stats.norm.ppf((np.arange(2000) + 0.5) / 2000)
    average = scoring.crps(z, rows_of(stats.norm.ppf(LEVELS), len(z))).mean()
    assert average == pytest.approx(gaussian_crps(z).mean(), rel=0.01)


def test_a_finer_grid_comes_closer_to_the_integral() -> None:
    z, fine = np.linspace(-3.0, 3.0, 61), (np.arange(2000) + 0.5) / 2000
    found = scoring.crps(z, np.broadcast_to(stats.norm.ppf(fine), (61, 2000)), levels=fine)
    assert found == pytest.approx(gaussian_crps(z), abs=1e-4)


@pytest.mark.parametrize(("shift", "width"), [(0.3, 1.0), (-0.3, 1.0), (0.0, 0.7), (0.0, 1.5)])
def test_the_true_distribution_has_the_least_crps(shift: float, width: float) -> None:
    z = stats.t.ppf((np.arange(2000) + 0.5) / 2000, 3.0)
    truth = scoring.crps(z, rows_of(stats.t.ppf(LEVELS, 3.0), len(z))).mean()
    other = scoring.crps(z, rows_of(shift + width * stats.t.ppf(LEVELS, 3.0), len(z))).mean()
    assert truth < other


def test_the_crps_of_a_certain_prediction_is_its_absolute_error_and_always_finite() -> None:
    found = scoring.crps(np.array([7.0, 4.0]), np.full((2, len(LEVELS)), 5.0))
    assert found == pytest.approx([2.0, 1.0])
    assert np.isfinite(scoring.crps(np.array([1e4]), rows_of(stats.cauchy.ppf(LEVELS), 1))).all()


def test_a_calibrated_forecast_covers_what_its_bands_promise() -> None:
    z = stats.norm.ppf((np.arange(1000) + 0.5) / 1000)
    quantiles = rows_of(stats.norm.ppf(LEVELS), len(z))
    assert scoring.share_below(z, quantiles) == pytest.approx(LEVELS, abs=1e-3)
    for probability in scoring.BANDS:
        assert scoring.coverage(z, quantiles, probability=probability) == pytest.approx(probability, abs=2e-3)
    assert scoring.pit_histogram(stats.norm.cdf(z)) == pytest.approx(np.full(10, 0.1))


def test_bands_half_as_wide_cover_less_and_pile_up_the_pit_at_its_ends() -> None:
    z = stats.norm.ppf((np.arange(1000) + 0.5) / 1000)
    assert scoring.coverage(z, rows_of(0.5 * stats.norm.ppf(LEVELS), 1000), probability=0.9) < 0.65
    histogram = scoring.pit_histogram(stats.norm.cdf(2.0 * z))
    assert histogram[[0, -1]].min() > 2.0 * histogram[1:-1].max()


def test_a_level_off_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="not enough values"):
        scoring.at_level(np.zeros((1, len(LEVELS))), 0.123)


def test_point_scores_are_what_their_names_say() -> None:
    found = scoring.point_scores(np.array([10.0, 20.0, 30.0, 40.0]), np.array([11.0, 18.0, 30.0, 44.0]))
    assert found["mape"] == pytest.approx((0.1 + 0.1 + 0.0 + 0.1) / 4)
    assert found["mae_ms"] == pytest.approx(7.0 / 4)
    assert found["rmse_ms"] == pytest.approx(np.sqrt(21.0 / 4))
    assert found["bias_ms"] == pytest.approx(3.0 / 4)
    assert found["r2"] == pytest.approx(1.0 - (21.0 / 4) / 125.0)
    assert found["ape_p95"] == pytest.approx(0.1)
    # Of latencies that do not vary, nothing is explained.
    assert np.isnan(scoring.point_scores(np.array([5.0, 5.0]), np.array([5.0, 6.0]))["r2"])
