"""Leave-one-out by PSIS: exact where that can be computed, in bounded memory, and honest where it fails."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import arviz as az
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import stats
from scipy.special import logsumexp

from bayes_sched.arrays import Floats
from bayes_sched.checks.loo import (
    CAVEAT,
    LeaveOneOut,
    comparable_steps,
    compare_models,
    leave_one_out,
    log_likelihoods,
)
from bayes_sched.errors import InputError
from bayes_sched.model.protocol import load_model
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.prediction import component_log_density
from bayes_sched.reports.plots.validation import model_differences
from tests.synthetic_fit import TRUTH, simulated_steps, synthetic_fit, synthetic_metadata

FLOORS_MS = np.linspace(0.5, 6.0, 2001)
"""Grid of tau_0, the one parameter that the exact problem leaves open; its prior is flat on the grid."""


def hand_made(
    draws: dict[str, Any], *, chains: int = 4, noise: str = "proportional", **changes: Any
) -> FittedModel:
    """A fit with the given draws, dims (chain * draw,), and constants."""
    length = max(np.size(values) for values in draws.values())
    shape = (chains, length // chains)
    posterior = xr.Dataset(
        {k: (("chain", "draw"), np.broadcast_to(v, length).reshape(shape)) for k, v in draws.items()},
        coords={"chain": np.arange(chains), "draw": np.arange(shape[1])},
    )
    model = load_model("saturation")
    metadata = synthetic_metadata(noise=noise, **changes)
    return FittedModel(data=xr.DataTree.from_dict({"/posterior": posterior}), model=model, metadata=metadata)


def log_density(draws: xr.Dataset, steps: pd.DataFrame) -> Floats:
    """Log likelihood of each step at each draw, dims (*draws, step), by SciPy."""
    model = load_model("saturation")
    columns = xr.Dataset({name: ("step", steps[name].to_numpy(dtype=float)) for name in model.columns})
    mean = model.latency(draws, columns)
    moments = xr.broadcast(mean, model.scale(draws, mean, columns))
    at = [moment.transpose(*draws.dims, "step").to_numpy() for moment in moments]
    return np.asarray(stats.t.logpdf(steps["latency_ms"].to_numpy(), TRUTH["nu"], *at))


def grid_log_likelihood(steps: pd.DataFrame) -> Floats:
    """Log likelihood of each step at each tau_0 of the grid, dims (floor, step)."""
    return log_density(xr.Dataset({**TRUTH, "tau_0": ("floor", FLOORS_MS)}), steps)


def exact_elpd(likelihood: Floats) -> Floats:
    """Log density of each step under the exact posterior of all others, flat prior on the grid."""
    elpd = []
    for left_out in range(likelihood.shape[1]):
        others = np.delete(likelihood, left_out, axis=1).sum(axis=1)
        elpd.append(logsumexp(others + likelihood[:, left_out]) - logsumexp(others))
    return np.array(elpd)


def exact_posterior_fit(steps: pd.DataFrame, *, num_draws: int = 4000, seed: int = 1) -> FittedModel:
    """A fit to `steps` with independent draws of tau_0 from its exact posterior; the rest is known."""
    log_weights = grid_log_likelihood(steps).sum(axis=1)
    weights = np.exp(log_weights - logsumexp(log_weights))
    floors = np.random.default_rng(seed).choice(FLOORS_MS, num_draws, p=weights / weights.sum())
    return hand_made({**TRUTH, "tau_0": floors})


def made(elpd: list[float], *, pareto_k: float = 0.1, **changes: Any) -> LeaveOneOut:
    """A result with given log densities."""
    sizes = np.arange(1, len(elpd) + 1)
    table = pd.DataFrame({"batch_size": sizes, "total_tokens": 2 * sizes, "latency_ms": 5.0, "elpd": elpd})
    table = table.assign(p_loo=0.01, pareto_k=pareto_k)
    return LeaveOneOut(**{"table": table, "num_draws": 4000, "converged": True, **changes})


def test_the_estimate_is_that_of_refits_without_each_step() -> None:
    steps = simulated_steps(8, seed=2)
    likelihood = grid_log_likelihood(steps)
    exact = exact_elpd(likelihood)
    found = leave_one_out(exact_posterior_fit(steps), steps)
    assert found.table["elpd"].to_numpy() == pytest.approx(exact, abs=0.03)
    in_sample = logsumexp(likelihood.sum(axis=1, keepdims=True) + likelihood, axis=0)
    in_sample -= logsumexp(likelihood.sum(axis=1))
    # The test would be empty if leaving a step out made no difference to speak of.
    assert np.abs(in_sample - exact).max() > 0.1
    assert found.p_loo == pytest.approx((in_sample - exact).sum(), abs=0.05)
    assert found.elpd == pytest.approx(exact.sum(), abs=0.05)
    assert not len(found.unreliable)


def test_an_effective_parameter_is_counted_for_each_that_the_steps_inform() -> None:
    steps = simulated_steps(300, seed=4)
    found = leave_one_out(exact_posterior_fit(steps), steps)
    assert found.p_loo == pytest.approx(1.0, abs=0.4)


@pytest.mark.parametrize("noise", ["proportional", "constant"])
def test_the_log_likelihood_is_that_of_the_model_with_named_dims(noise: str) -> None:
    steps = simulated_steps(5, seed=3)
    constant = {k: v for k, v in TRUTH.items() if not k.startswith("sigma")} | {"sigma": 0.4}
    draws = {**(TRUTH if noise == "proportional" else constant), "tau_0": np.linspace(1.0, 3.0, 120)}
    fit = hand_made(draws, noise=noise)
    (found,) = log_likelihoods(fit, steps)
    assert found.dims == ("chain", "draw", "step")
    assert found.shape == (4, 30, 5)
    wanted = log_density(fit.posterior.isel(chain=2, draw=7), steps)
    assert found.isel(chain=2, draw=7).to_numpy() == pytest.approx(wanted)


def test_chunks_give_identical_numbers_and_bound_the_memory() -> None:
    steps = simulated_steps(80, seed=5)
    fit = synthetic_fit(chains=4, draws=500, spread=0.01)
    at_once = leave_one_out(fit, steps)
    leave_one_out(fit, steps.head(3))  # loads what is loaded on demand
    tracemalloc.start()
    in_chunks = leave_one_out(fit, steps, max_values=2**13)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    pd.testing.assert_frame_equal(in_chunks.table, at_once.table, check_exact=True)
    of_all, of_a_chunk = 80 * 2000 * 8, 2**13 * 8
    assert peak < 12 * of_a_chunk < of_all
    # A single step is worked on where the draws alone exceed the bound.
    sizes = [part.sizes["step"] for part in log_likelihoods(fit, steps.head(3), max_values=7)]
    assert sizes == [1, 1, 1]


def test_the_sums_are_those_of_arviz_with_everything_in_memory() -> None:
    steps = simulated_steps(25, seed=11)
    fit = synthetic_fit(chains=4, draws=250, spread=0.02)
    (log_likelihood,) = log_likelihoods(fit, steps)
    groups = {"posterior": fit.posterior, "log_likelihood": log_likelihood.to_dataset(name="latency")}
    wanted = az.loo(xr.DataTree.from_dict(groups), pointwise=True)
    found = leave_one_out(fit, steps)
    assert found.elpd == pytest.approx(wanted.elpd)
    assert found.se == pytest.approx(wanted.se)
    assert found.p_loo == pytest.approx(wanted.p)
    assert found.max_k == pytest.approx(wanted.good_k)
    assert found.table["pareto_k"].to_numpy() == pytest.approx(wanted.pareto_k.to_numpy())


def surprised(num_steps: int) -> LeaveOneOut:
    """Steps that are just as expected but for the 17th, of a posterior without long tails."""
    steps = simulated_steps(num_steps, seed=6)
    steps.loc[17, ["batch_size", "total_tokens"]] = [3, 300]
    mean_ms = synthetic_fit(spread=1e-9).mean_latency(steps).mean(("chain", "draw")).to_numpy()
    mean_ms[17] += 40.0
    floors = np.random.default_rng(2).normal(TRUTH["tau_0"], 0.05, 1000)
    fit = hand_made({**TRUTH, "nu": 1e4, "tau_0": floors, "sigma_rel": 0.05, "sigma_floor": 0.5})
    return leave_one_out(fit, steps.assign(latency_ms=mean_ms))


def test_a_step_that_no_draw_expects_is_named_as_unreliable() -> None:
    found = surprised(30)
    assert found.unreliable.index.tolist() == [17]
    assert not found.reliable
    worst = "1 of 30 steps have Pareto k above 0.67 (B 3, S 300): step 17 (B = 3, S = 300, "
    assert worst in found.pareto_text
    assert "The estimate is unreliable" in found.text
    assert CAVEAT in found.text
    among_many = surprised(150)
    assert among_many.unreliable.index.tolist() == [17]
    assert among_many.reliable
    assert "The estimate of the whole is reliable, of these steps it is not." in among_many.pareto_text


def test_weights_that_nothing_can_smooth_are_unreliable_and_not_an_error() -> None:
    steps = simulated_steps(3, seed=6).assign(latency_ms=900.0)
    floors = np.random.default_rng(2).normal(2.0, 0.3, 1000)
    fit = hand_made({**TRUTH, "nu": 1e4, "tau_0": floors, "sigma_rel": 0.005, "sigma_floor": 0.02})
    found = leave_one_out(fit, steps)
    assert len(found.unreliable) == 3
    assert "The estimate is unreliable" in found.text


def test_fewer_draws_allow_less_pareto_k_and_none_is_not_taken_for_a_good_one() -> None:
    found = made([-1.0, -2.0], pareto_k=float("nan"))
    assert len(found.unreliable) == 2
    assert not found.reliable
    assert made([-1.0], num_draws=4000).max_k == 0.7
    assert made([-1.0], num_draws=400).max_k == pytest.approx(1.0 - 1.0 / np.log10(400))


def test_a_fit_that_failed_its_gate_says_so_where_it_is_scored_and_compared() -> None:
    failed = made([-1.0] * 30, converged=False)
    assert "failed its convergence gate" in failed.text
    found = compare_models({"a": failed, "b": made([-2.0] * 30)})
    assert any("a: the fit failed" in text for text in found.sentences)


@pytest.mark.parametrize("changes", [{"converged": False}, {"pareto_k": 0.9}])
def test_a_best_model_that_cannot_be_relied_on_is_not_said_to_predict_best(changes: dict[str, Any]) -> None:
    found = compare_models({"a": made([-1.0] * 30, **changes), "b": made([-2.0] * 30)})
    assert found.best == "a"
    assert found.sentences[0].startswith("a has the largest elpd over 30 steps, but cannot be relied on")


def test_the_model_that_made_the_steps_wins() -> None:
    steps = simulated_steps(300, seed=7)
    right = hand_made({**TRUTH, "tau_0": np.random.default_rng(1).normal(2.0, 0.02, 2000)})
    constant = {k: v for k, v in TRUTH.items() if not k.startswith("sigma")} | {"sigma": 0.5}
    wrong = hand_made(
        {**constant, "tau_0": np.random.default_rng(2).normal(2.0, 0.02, 2000)}, noise="constant"
    )
    found = compare_models({"constant": leave_one_out(wrong, steps), "right": leave_one_out(right, steps)})
    assert found.best == "right"
    assert list(found.table.index) == ["right", "constant"]
    difference = found.members["constant"].table["elpd"] - found.members["right"].table["elpd"]
    assert found.value("difference", "constant") == pytest.approx(difference.sum())
    assert found.value("difference_se", "constant") == pytest.approx(np.sqrt(300 * difference.var(ddof=1)))
    assert found.is_behind("constant")
    assert found.table["weight"].sum() == pytest.approx(1.0)
    assert found.value("weight", "right") > 0.8
    assert found.sentences[0] == "right predicts best over 300 steps."


def test_models_that_do_the_same_are_not_told_apart() -> None:
    rng = np.random.default_rng(3)
    elpd = rng.normal(-2.0, 1.0, 200)
    other = elpd + rng.normal(0.0, 0.1, 200)
    found = compare_models({"a": made(elpd.tolist()), "b": made(other.tolist())})
    worse = str(found.table.index[1])
    assert not found.is_behind(worse)
    assert f"Not told apart from it (by twice the standard error): {worse}." in found.sentences[0]


def test_stretches_show_what_autocorrelation_hides() -> None:
    rng = np.random.default_rng(4)
    slow = np.repeat(rng.normal(0.0, 1.0, 50), 40)
    fast = rng.permutation(slow)
    ratios = []
    for difference in (slow, fast):
        members = {"a": made([-1.0] * 2000), "b": made((-1.0 + difference - 0.5).tolist())}
        found = compare_models(members)
        worse = str(found.table.index[1])
        errors = [found.value(name, worse) for name in ("difference_se_stretches", "difference_se")]
        ratios.append(errors[0] / errors[1])
    assert ratios[0] > 3.0
    assert 0.5 < ratios[1] < 1.6


def test_few_steps_give_no_standard_error_of_stretches() -> None:
    found = compare_models({"a": made([-1.0, -2.0]), "b": made([-2.0, -2.5])})
    assert np.isnan(found.value("difference_se_stretches", "b"))
    assert found.to_dict()["models"][1]["difference_se_stretches"] is None


def test_models_of_different_steps_do_not_compare() -> None:
    other = made([-1.0, -2.0])
    shifted = replace(other, table=other.table.assign(latency_ms=6.0))
    with pytest.raises(InputError, match="a and b were fitted to different steps"):
        compare_models({"a": other, "b": shifted})
    with pytest.raises(InputError, match="no model to compare"):
        compare_models({})


def test_steps_are_those_that_every_model_can_use() -> None:
    steps = simulated_steps(50, seed=8).assign(context_tokens=np.arange(50.0))
    steps.loc[[3, 4], "context_tokens"] = np.nan
    columns = {"small": ("batch_size",), "large": ("batch_size", "context_tokens")}
    all_of_them = comparable_steps(steps, columns, max_rows=100, seed=0)
    assert len(all_of_them) == 48
    few = comparable_steps(steps, columns, max_rows=20, seed=0)
    assert len(few) == 20
    assert few["context_tokens"].is_monotonic_increasing
    pd.testing.assert_frame_equal(few, comparable_steps(steps, columns, max_rows=20, seed=0))
    assert not few.equals(comparable_steps(steps, columns, max_rows=20, seed=1))


@pytest.mark.parametrize("empty", [True, False])
def test_a_model_whose_columns_the_trace_lacks_is_named(empty: bool) -> None:
    steps = simulated_steps(30, seed=9)
    if empty:
        steps["context_tokens"] = np.nan
    with pytest.raises(
        InputError, match="the model large needs context_tokens, which the trace does not hold"
    ):
        comparable_steps(steps, {"large": ("batch_size", "context_tokens")}, max_rows=10, seed=0)


def test_steps_without_a_latency_and_fits_of_few_draws_are_refused() -> None:
    steps = simulated_steps(5, seed=1)
    with pytest.raises(InputError, match="the steps have no latency_ms"):
        leave_one_out(synthetic_fit(), steps.drop(columns="latency_ms"))
    with pytest.raises(InputError, match="48 draws are too few for leave-one-out"):
        leave_one_out(synthetic_fit(chains=4, draws=12), steps)


def test_a_step_without_a_likelihood_is_refused_and_not_left_out_of_the_sum() -> None:
    steps = simulated_steps(5, seed=1)
    draws = {**TRUTH, "tau_0": np.where(np.arange(200) == 7, np.nan, 2.0)}
    with pytest.raises(InputError, match="the model saturation gives step 0 no finite likelihood"):
        leave_one_out(hand_made(draws), steps)


def test_the_density_of_a_component_integrates_to_one() -> None:
    x = np.linspace(-400.0, 420.0, 400_001)
    mean, scale, nu = (np.array([[value]]) for value in (10.0, 2.0, 3.0))
    density = np.exp(component_log_density(mean, scale, nu, x))
    assert float(np.trapezoid(density[0], x)) == pytest.approx(1.0, abs=1e-5)


def test_the_figure_says_what_its_axis_counts_and_what_cannot_be_relied_on() -> None:
    found = compare_models({"a": made([-1.0] * 120), "b": made([-2.0, -3.0] * 60, converged=False)})
    axes = model_differences(found).axes[0]
    marks = [line.get_markerfacecolor() for line in axes.get_lines() if line.get_marker() == "o"]
    assert marks[0] != "white" == marks[1]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert "nats" in axes.get_xlabel()
