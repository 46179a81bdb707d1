"""Figures: what they show, and that they leave everything else alone."""

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.figure import Figure

from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.reports.plots.calibration import (
    calibrate,
    posterior_predictive_check,
    residual_table,
    residuals,
    running_quantiles,
)
from bayes_sched.reports.plots.fit import (
    latency_by_batch,
    latency_by_tokens,
    latency_contours,
    prior_predictive,
    typical_batch_sizes,
)
from bayes_sched.reports.plots.posterior import combination_pairs, deviation, prior_posterior, ranks
from bayes_sched.reports.plots.style import new_figure, sample_steps, save_figure
from tests.synthetic_fit import TRUTH, simulated_steps, synthetic_fit

type Draw = Callable[[FittedModel, pd.DataFrame], Figure]

FIGURES: dict[str, Draw] = {
    "latency_by_tokens": latency_by_tokens,
    "latency_by_batch": latency_by_batch,
    "latency_contours": latency_contours,
    "posterior_predictive_check": posterior_predictive_check,
    "residuals": residuals,
    "prior_posterior": lambda fit, _: prior_posterior(fit),
    "combination_pairs": lambda fit, _: combination_pairs(fit),
    "ranks": lambda fit, _: ranks(fit),
    "prior_predictive": prior_predictive,
}


@pytest.fixture(scope="module")
def fit() -> FittedModel:
    return synthetic_fit(spread=0.02)


@pytest.fixture(scope="module")
def steps() -> pd.DataFrame:
    return simulated_steps(600, seed=1)


def labels(figure: Figure) -> list[str]:
    shown = [ax for ax in figure.axes if ax.get_visible()]
    return [text for ax in shown for text in (ax.get_xlabel(), ax.get_ylabel(), ax.get_title("left"))]


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_a_title_and_labelled_axes(name: str, fit: FittedModel, steps: pd.DataFrame) -> None:
    figure = FIGURES[name](fit, steps)
    assert isinstance(figure, Figure)
    assert len(figure.get_suptitle()) > 20
    for ax in figure.axes:
        lowest = ax.get_subplotspec() is not None and ax.get_subplotspec().is_last_row()  # type: ignore[union-attr]
        if ax.get_visible() and lowest:
            assert ax.get_xlabel()


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("latency_by_tokens", "latency (ms)"),
        ("latency_by_batch", "latency (ms)"),
        ("latency_contours", "Median latency (ms)"),
        ("latency_contours", "99th percentile of latency (ms)"),
        ("residuals", "residual (ms)"),
        ("residuals", "residual (noise scales)"),
        ("prior_posterior", "ms/token"),
        ("combination_pairs", "c (ms/token)"),
        ("prior_predictive", "latency (ms)"),
    ],
)
def test_axes_carry_units(name: str, unit: str, fit: FittedModel, steps: pd.DataFrame) -> None:
    assert unit in labels(FIGURES[name](fit, steps))


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(pd.DataFrame({"batch_size": [3] * 30, "total_tokens": [3] * 30}), id="one decode step"),
        pytest.param(
            pd.DataFrame({"batch_size": [4] * 30, "total_tokens": [99] * 30}), id="one prefill step"
        ),
        pytest.param(pd.DataFrame({"batch_size": [1], "total_tokens": [1]}), id="a single step"),
        pytest.param(
            pd.DataFrame({"batch_size": range(1, 31), "total_tokens": range(1, 31)}), id="decode-only steps"
        ),
    ],
)
@pytest.mark.parametrize("name", ["latency_by_tokens", "latency_by_batch", "latency_contours", "residuals"])
def test_figures_can_be_drawn_for_traces_of_one_kind_of_step(
    name: str, steps: pd.DataFrame, fit: FittedModel
) -> None:
    latency_ms = np.linspace(10.0, 11.0, len(steps))
    figure = FIGURES[name](fit, steps.assign(latency_ms=latency_ms))
    figure.draw_without_rendering()


def test_figures_leave_the_settings_and_the_state_of_pyplot_alone(
    fit: FittedModel, steps: pd.DataFrame
) -> None:
    before = dict(mpl.rcParams)
    latency_by_batch(fit, steps)
    assert dict(mpl.rcParams) == before


def test_a_figure_is_saved_as_png_and_svg_with_the_same_bytes_each_time(
    tmp_path: Path, fit: FittedModel, steps: pd.DataFrame
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        png, svg = save_figure(latency_by_batch(fit, steps), tmp_path / folder, "x")
        assert png.read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in svg.read_bytes()
    for name in ("x.png", "x.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_long_title_is_wrapped_into_the_figure() -> None:
    figure, _ = new_figure("word " * 30, height_in=2.0)
    assert max(len(line) for line in figure.get_suptitle().splitlines()) <= 58


def test_a_right_model_is_calibrated(steps: pd.DataFrame) -> None:
    calibration = calibrate(synthetic_fit(spread=1e-6), simulated_steps(4000, seed=5))
    assert calibration.max_deviation < 0.03
    assert calibration.coverage_of(0.9) == pytest.approx(0.9, abs=0.02)
    everything = calibration.coverage.iloc[:3]
    assert everything["coverage"].to_numpy() == pytest.approx([0.5, 0.9, 0.99], abs=0.03)
    assert "90% band" in calibration.text


def test_a_wrong_noise_shows_in_the_coverage() -> None:
    steps = simulated_steps(1000, seed=6)
    right = synthetic_fit(spread=1e-6)
    posterior = right.posterior.assign(sigma_rel=right.posterior["sigma_rel"] * 4.0)
    data = right.data.copy()
    data["posterior"] = xr.DataTree(posterior)
    wide = FittedModel(data=data, model=right.model, metadata=right.metadata)
    assert calibrate(wide, steps).coverage_of(0.5) > 0.8


def test_coverage_counts_every_step_once_per_kind(fit: FittedModel, steps: pd.DataFrame) -> None:
    coverage = calibrate(fit, steps).coverage
    counts = coverage[coverage["probability"] == 0.9].set_index("steps")["num_steps"]
    assert counts["all steps"] == len(steps) == counts.drop("all steps").sum()


def test_residuals_are_the_observed_minus_the_mean_latency() -> None:
    steps = pd.DataFrame({"batch_size": [1, 8, 1], "total_tokens": [1, 200, 1]})
    certain = synthetic_fit(spread=1e-9)
    mean_ms = certain.mean_band(steps)["median"].to_numpy()
    table = residual_table(certain, steps.assign(latency_ms=mean_ms + np.array([1.0, -2.0, 0.5])))
    assert table["residual_ms"].to_numpy() == pytest.approx([1.0, -2.0, 0.5], abs=1e-5)
    scale_ms = np.hypot(TRUTH["sigma_floor"], TRUTH["sigma_rel"] * mean_ms[0])
    assert table["residual_scales"].iloc[0] == pytest.approx(1.0 / scale_ms, rel=1e-4)
    assert table["position"].tolist() == [1, 2, 3]


def test_running_quantiles_leave_thin_bins_out() -> None:
    x = np.concatenate([np.linspace(0.0, 1.0, 200), [20.0]])
    table = running_quantiles(x, np.concatenate([np.ones(200), [99.0]]))
    assert table["middle"].tolist() == [1.0]


def test_ranks_of_chains_that_agree_are_even_and_of_a_stray_chain_are_not() -> None:
    rng = np.random.default_rng(0)
    draws = xr.DataArray(rng.normal(size=(4, 1000)), dims=("chain", "draw"))
    assert np.abs(deviation(draws)).max() < 0.08
    stray = draws + xr.DataArray([0.0, 0.0, 0.0, 3.0], dims="chain")
    assert np.abs(deviation(stray)[3]).max() > 0.5


def test_rank_plots_cover_parameters_and_sampled_coordinates(fit: FittedModel) -> None:
    titles = [ax.get_title("left") for ax in ranks(fit).axes if ax.get_visible()]
    assert r"$\tau_S$" in titles
    assert "throughput" in titles
    assert len(titles) == len(TRUTH) + 3


def test_contraction_agrees_with_the_parameter_table(fit: FittedModel) -> None:
    table = fit.parameter_table().set_index("name")["contraction"]
    assert fit.contraction("tau_S") == pytest.approx(table["tau_S"], rel=1e-12)


def test_panels_show_batch_sizes_that_the_trace_holds(steps: pd.DataFrame) -> None:
    chosen = typical_batch_sizes(steps)
    assert set(chosen) <= set(steps["batch_size"])
    assert chosen == sorted(set(chosen))
    assert 1 <= len(chosen) <= 4


def test_the_same_steps_are_drawn_each_time() -> None:
    steps = simulated_steps(500, seed=2)
    pd.testing.assert_frame_equal(sample_steps(steps, 100), sample_steps(steps, 100))
    assert sample_steps(steps, 500) is steps
