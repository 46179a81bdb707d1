"""Ranks of true values, and the verdict on them."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import all_parameters, load_model
from bayes_sched.reports.plots.studies import simulated_ranks
from bayes_sched.reports.studies import write_study
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.studies.folder import StudyFolder
from bayes_sched.studies.runs import complete
from bayes_sched.studies.sbc import (
    NUM_RANKED_DRAWS,
    CalibrationStudy,
    SimulatedFits,
    rank_among,
    uniformity,
    uniformity_table,
)
from tests.synthetic_fit import synthetic_fit

pytestmark = pytest.mark.usefixtures("blank_figures")


def ranks_of_beta(a: float, b: float, *, size: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Ranks whose relative size follows a beta distribution: (1, 1) is uniform."""
    return np.floor(np.random.default_rng(seed).beta(a, b, size) * (NUM_RANKED_DRAWS + 1)).astype(np.int64)


def test_uniform_ranks_leave_the_band_as_often_as_it_says() -> None:
    outside = [not uniformity(ranks_of_beta(1, 1, size=200, seed=seed)).is_uniform for seed in range(200)]
    assert 2 <= sum(outside) <= 20  # binomial(200, 0.05): 10 expected


@pytest.mark.parametrize(
    ("a", "b"),
    [(1.6, 1.0), (1.0, 1.6), (0.6, 0.6), (2.0, 2.0)],
    ids=["too low", "too high", "too narrow", "too wide"],
)
def test_biased_posteriors_are_told_from_right_ones(a: float, b: float) -> None:
    found = uniformity(ranks_of_beta(a, b, size=200, seed=1))
    assert found.p_value < 0.01
    assert ((found.difference < found.lower) | (found.difference > found.upper)).any()


def test_a_posterior_that_is_too_high_gives_low_ranks_and_a_distribution_above_the_uniform_one() -> None:
    assert uniformity(ranks_of_beta(1.0, 2.0, size=200, seed=1)).max_deviation > 0.1


def test_the_band_and_the_p_value_agree() -> None:
    for seed in range(30):
        found = uniformity(ranks_of_beta(1.0, 1.15, size=150, seed=seed))
        outside = ((found.difference < found.lower - 1e-12) | (found.difference > found.upper + 1e-12)).any()
        assert outside == (found.p_value < 0.05) or abs(found.p_value - 0.05) < 0.01


def test_a_true_value_is_ranked_among_evenly_spaced_draws_of_all_chains() -> None:
    draws = xr.DataArray(np.arange(990.0).reshape(2, 495), dims=("chain", "draw"))
    assert rank_among(-1.0, draws) == 0
    assert rank_among(1e3, draws) == NUM_RANKED_DRAWS
    assert rank_among(494.5, draws) in (49, 50)
    assert rank_among(494.5, draws.transpose("draw", "chain")) == rank_among(494.5, draws)
    with pytest.raises(ValueError, match="60 draws are fewer than the 99"):
        rank_among(0.0, xr.DataArray(np.zeros((2, 30)), dims=("chain", "draw")))


def test_the_table_names_each_quantity() -> None:
    ranks = {"good": ranks_of_beta(1, 1, size=100, seed=3), "bad": ranks_of_beta(3, 1, size=100, seed=3)}
    table = uniformity_table(pd.DataFrame(ranks))
    assert table["even"].to_dict() == {"good": True, "bad": False}
    assert table.loc["bad", "mean_rank"] == pytest.approx(0.75, abs=0.05)


def test_a_calibration_is_written_with_its_ranks_figure_and_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model("saturation")
    steps = pd.DataFrame({"batch_size": [1, 2, 4, 8] * 6, "total_tokens": [1, 2, 4, 80] * 6})
    priors = Priors.from_parameters(all_parameters(model, "proportional"))
    settings = SamplerSettings(draws=100, chains=2, seed=3)
    fits = SimulatedFits(model, steps, priors, noise="proportional", settings=settings)
    gate = synthetic_fit(chains=2, draws=100).convergence
    info = {"num_parts": 1, "neglected_mass": 0.0, "pilot_efficiency": 0.5}

    def fit(observed: Any, *, seed: int) -> Any:
        if seed % 5 == 0:
            raise RuntimeError("no start")
        known = synthetic_fit(chains=2, draws=100, seed=seed % 1000)
        return SimpleNamespace(data=known.data, info=info), gate

    monkeypatch.setattr(fits, "fit", fit)
    study = CalibrationStudy(fits, 12)
    asked = {"seed": 3, "design": "t.jsonl", "draws": 100, "tune": 200, "chains": 2}
    folder = StudyFolder(folder=tmp_path, table="simulations.csv", number="simulation", settings=asked)
    found = complete(study, folder)
    pd.testing.assert_frame_equal(study.run(7).drop(columns="seconds"), study.run(7).drop(columns="seconds"))
    document = write_study(found, tmp_path, command="python scripts/calibrate.py")
    assert set(found.tables["ranks"]) == {"simulation", *found.tables["evenness"].index}
    assert set(priors) < set(found.tables["evenness"].index)
    ranks = pd.read_csv(tmp_path / "ranks.csv")
    assert len(ranks) + study.summary(pd.read_csv(folder.path), folder).num_errors == 12
    text = (tmp_path / "README.md").read_text()
    assert re.search(r"12 simulations, \d+ not fitted for an error", text)
    assert "| `evenness.csv` | the table above |" in text
    assert [figure.name for figure in document.figures] == ["calibration"]
    assert (tmp_path / "calibration.svg").exists()
    titles = [ax.get_title(loc="left") for ax in simulated_ranks(found).axes]
    assert "tau_S [ms/token]" in titles
