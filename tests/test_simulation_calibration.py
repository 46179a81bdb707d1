"""Ranks of true values, and the verdict on them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from bayes_sched.reports.plots.studies import simulated_ranks
from bayes_sched.reports.plots.style import save_figure
from bayes_sched.studies.sbc import NUM_RANKED_DRAWS, evenness, evenness_table, rank_among


def ranks_of_beta(a: float, b: float, *, size: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Ranks whose relative size follows a beta distribution: (1, 1) is even."""
    return np.floor(np.random.default_rng(seed).beta(a, b, size) * (NUM_RANKED_DRAWS + 1)).astype(np.int64)


def test_even_ranks_leave_the_band_as_often_as_it_says() -> None:
    outside = [evenness(ranks_of_beta(1, 1, size=200, seed=seed)).p_value <= 0.05 for seed in range(200)]
    assert 2 <= sum(outside) <= 20  # binomial(200, 0.05): 10 expected


@pytest.mark.parametrize(
    ("a", "b"),
    [(1.6, 1.0), (1.0, 1.6), (0.6, 0.6), (2.0, 2.0)],
    ids=["too low", "too high", "too narrow", "too wide"],
)
def test_biased_posteriors_are_told_from_right_ones(a: float, b: float) -> None:
    found = evenness(ranks_of_beta(a, b, size=200, seed=1))
    assert found.p_value < 0.01
    assert ((found.difference < found.lower) | (found.difference > found.upper)).any()


def test_a_posterior_that_is_too_high_gives_low_ranks_and_a_distribution_above_the_even_one() -> None:
    found = evenness(ranks_of_beta(1.0, 2.0, size=200, seed=1))
    assert found.max_deviation > 0.1


def test_the_band_and_the_p_value_agree() -> None:
    for seed in range(30):
        found = evenness(ranks_of_beta(1.0, 1.15, size=150, seed=seed))
        outside = ((found.difference < found.lower - 1e-12) | (found.difference > found.upper + 1e-12)).any()
        assert outside == (found.p_value < 0.05) or abs(found.p_value - 0.05) < 0.01


def test_a_true_value_is_ranked_among_evenly_spaced_draws_of_all_chains() -> None:
    draws = xr.DataArray(np.arange(990.0).reshape(2, 495), dims=("chain", "draw"))
    assert rank_among(-1.0, draws) == 0
    assert rank_among(1e3, draws) == NUM_RANKED_DRAWS
    assert rank_among(494.5, draws) in (49, 50)
    assert rank_among(494.5, draws.transpose("draw", "chain")) == rank_among(494.5, draws)


def test_too_few_draws_to_rank_among_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="60 draws are fewer than the 99"):
        rank_among(0.0, xr.DataArray(np.zeros((2, 30)), dims=("chain", "draw")))


def test_the_table_and_the_figure_name_each_quantity(tmp_path: Path) -> None:
    ranks = pd.DataFrame(
        {"good": ranks_of_beta(1, 1, size=100, seed=3), "bad": ranks_of_beta(3, 1, size=100, seed=3)}
    )
    table = evenness_table(ranks)
    assert table["even"].to_dict() == {"good": True, "bad": False}
    assert table.loc["bad", "mean_rank"] == pytest.approx(0.75, abs=0.05)
    figure = simulated_ranks(ranks, units={"good": "ms", "bad": "1"})
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == ["good [ms]", "bad"]
    png, svg = save_figure(figure, tmp_path, "calibration")
    assert png.stat().st_size > 1000
    assert svg.stat().st_size > 1000
