"""The study of simulated pairs: it recovers what it simulated, and goes on where it stopped."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from bayes_sched.cli import study as command
from bayes_sched.cli.main import run_script
from bayes_sched.format import records
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import all_parameters, load_model
from bayes_sched.reports.plots.studies import comparison_calibration
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.studies.comparison import (
    LARGEST_RATIO,
    SMALLEST_RATIO,
    PairStudy,
    coverage_table,
    one_step_each,
    reliability_table,
)
from bayes_sched.studies.folder import StudyFolder
from bayes_sched.studies.sbc import SimulatedFits

pytestmark = pytest.mark.usefixtures("in_an_empty_folder", "blank_figures")

TIMED = ["seconds"]


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> PairStudy:
    """A sampler in whose place one knows each server but for a common factor that it reads off."""
    model = load_model("saturation")
    b = np.repeat([1, 2, 4, 8, 16], 80)
    steps = pd.DataFrame({"batch_size": b, "total_tokens": b * np.tile([1, 8], 200)})
    priors = Priors.from_parameters(all_parameters(model, "proportional"))
    settings = SamplerSettings(draws=200, chains=2, seed=3)
    fits = SimulatedFits(model, steps, priors, noise="proportional", settings=settings)
    truths: list[xr.Dataset] = []
    draw = fits.plausible

    def remember(rng: np.random.Generator) -> xr.Dataset:
        truths.append(draw(rng))
        return truths[-1]

    def fit(observed: Any, *, seed: int) -> Any:
        truth = truths[-1]
        ratio = float(np.median(observed / model.latency(truth, fits.design).to_numpy()))
        factor = ratio * np.exp(0.02 * np.random.default_rng(seed).standard_normal((2, 200)))
        constant = {str(name): np.full((2, 200), float(value)) for name, value in truth.items()}
        draws = xr.Dataset({name: (("chain", "draw"), values) for name, values in constant.items()})
        draws["P_max"] = draws["P_max"] / factor
        for name in ("tau_0", "tau_B", "tau_S"):
            draws[name] = draws[name] * factor
        return SimpleNamespace(data={"posterior": xr.DataTree(draws)}), SimpleNamespace(converged=True)

    monkeypatch.setattr(fits, "plausible", remember)
    monkeypatch.setattr(fits, "fit", fit)
    return PairStudy(fits, 10)


def test_a_pair_is_compared_with_the_ratio_it_was_simulated_with(study: PairStudy) -> None:
    rows = study.run(4)
    (true_ratio,) = rows["true_ratio"].unique()
    assert SMALLEST_RATIO <= true_ratio <= LARGEST_RATIO
    assert rows["error"].isna().all()
    assert rows["gates_passed"].tolist() == [2] * 5
    assert rows["ratio_median"].to_numpy() == pytest.approx(true_ratio, rel=0.15)
    assert (rows["first_is_faster"] == float(true_ratio < 1.0)).all()
    pd.testing.assert_frame_equal(study.run(4).drop(columns=TIMED), rows.drop(columns=TIMED))


def test_servers_of_the_study_take_plausible_times(study: PairStudy) -> None:
    for number in range(5):
        truth = study.fits.plausible(np.random.default_rng(number))
        assert 2.0 <= float(study.fits.model.latency(truth, study.fits.design).median()) <= 200.0


def test_an_error_of_a_fit_is_kept_with_the_pair(study: PairStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(observed: Any, *, seed: int) -> None:
        raise RuntimeError("no start\nwas found")

    monkeypatch.setattr(study.fits, "fit", fail)
    rows = study.run(0)
    assert rows["error"].tolist() == ["RuntimeError: no start was found"]
    assert rows["covered"].isna().all()


def test_a_study_is_written_and_goes_on_where_it_stopped(
    study: PairStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "make_pairs", lambda options: PairStudy(study.fits, options.pairs))
    main = partial(run_script, "calibrate_comparison.py")
    arguments = ["--results-dir", "study", "--pairs"]
    assert main([*arguments, "10"]) == 0
    first = pd.read_csv("study/pairs.csv")
    assert main([*arguments, "12", "--resume"]) == 0
    both = pd.read_csv("study/pairs.csv")
    pd.testing.assert_frame_equal(both.iloc[: len(first)].drop(columns=TIMED), first.drop(columns=TIMED))
    assert both["pair"].unique().tolist() == list(range(12))
    names = {path.name for path in Path("study").iterdir()}
    assert {"README.md", "calibration.png", "coverage.csv", "reliability.csv", "study.json"} <= names
    assert "12 pairs, 0 not compared" in capsys.readouterr().out
    page = Path("study/README.md").read_text()
    assert "python scripts/calibrate_comparison.py --results-dir study --pairs 12\n" in page


@pytest.fixture
def pairs() -> pd.DataFrame:
    """Forty pairs, probed at two steps each; nine in ten intervals hold the truth."""
    number = pd.Series(range(40)).repeat(2).reset_index(drop=True)
    ratio = 0.8 + number / 100.0
    return pd.DataFrame(
        {
            "pair": number,
            "batch_size": [1, 8] * 40,
            "total_tokens": [1, 64] * 40,
            "true_ratio": ratio,
            "ratio_median": ratio * 1.01,
            "ratio_lower": ratio * 0.95,
            "ratio_upper": ratio * 1.05,
            "covered": (number % 10 != 0).astype(float),
            "p_faster": 1.0 - number / 39.0,
            "first_is_faster": (ratio < 1.0).astype(float),
            "rank": 2.0 * number,
            "gates_passed": 2,
            "seconds": 1.0,
            "error": None,
        }
    )


def test_coverage_counts_pairs_and_not_their_steps(pairs: pd.DataFrame) -> None:
    rows = {row["step"]: row for row in records(coverage_table(pairs))}
    assert rows["all"]["coverage"] == pytest.approx(0.9)
    assert rows["all"]["pairs"] == 40
    assert rows["all"]["lower"] == rows["B = 1, S = 1"]["lower"]
    assert rows["all"]["lower"] < 0.8 < 0.9 < rows["all"]["upper"]


def test_reliability_compares_what_was_said_with_what_came_true(pairs: pd.DataFrame) -> None:
    chosen = one_step_each(pairs)
    assert chosen["pair"].tolist() == list(range(40))
    assert set(chosen["batch_size"]) == {1, 8}
    table = reliability_table(chosen)
    assert table["pairs"].sum() == 40
    assert table["predicted"].is_monotonic_increasing
    assert (table["observed"].iloc[0], table["observed"].iloc[-1]) == (0.0, 1.0)
    assert (table["lower"] <= table["observed"]).all()


def test_the_calibration_figure_states_the_coverage(pairs: pd.DataFrame, study: PairStudy) -> None:
    folder = StudyFolder(folder=Path(), table="", number="pair", settings={"probability": 0.9})
    figure = comparison_calibration(study.summary(pairs, folder))
    assert figure.axes[0].get_title("left") == "90% intervals: 90% hold the truth"
    assert figure.axes[1].get_xlabel() == "P(first is faster), as given"
    assert "40 simulated pairs" in figure.get_suptitle()
