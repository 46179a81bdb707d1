"""Comparisons: known ratios come out, verdicts keep their rule, intervals and probabilities are right."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

import bayes_sched
from bayes_sched.comparison.compare import Comparison, compare, parameter_ratios, parameter_values
from bayes_sched.comparison.latency import latency_maps
from bayes_sched.comparison.members import paired_posteriors
from bayes_sched.comparison.throughput import BY_LIMIT, BY_TRACE, COST, TOKENS, largest_within, rates_of
from bayes_sched.comparison.verdicts import IN_TRACES, MEASURED, ON_GRID, data_factor, verdicts
from bayes_sched.format import records
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.steps import steps_arrays
from tests.comparison_fits import RATIO, SMALL, by, scaled, server, servers_of, with_groups
from tests.synthetic_fit import TRUTH


class NormalServers:
    """Two servers, many steps: of each the truth, the data and the posterior of the log latency are normal.

    Every step stands for a pair of servers of its own, so that one comparison is many.
    """

    labels = ("first", "second")

    def __init__(self, num: int, *, num_draws: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        prior_sd, noise_sd = 0.1, rng.uniform(0.003, 0.2, (2, 1, num))
        self.truth = rng.normal(0.0, prior_sd, (2, num))
        observed = rng.normal(self.truth[:, None], noise_sd)
        shrink = prior_sd**2 / (prior_sd**2 + noise_sd**2)
        logs = rng.normal(shrink * observed, np.sqrt(shrink) * noise_sd, (2, num_draws, num))
        dims = ("gpu", "draw", "step")
        self.mean_ms = xr.DataArray(20.0 * np.exp(logs), dims=dims, coords={"gpu": list(self.labels)})
        self.steps = [20.0 * np.exp(log) * (1.0 + 0.1 * rng.standard_t(4.0, num)) for log in self.truth]

    def scale_ms(self, steps: object) -> xr.DataArray:
        return 0.1 * self.mean_ms

    def nu(self) -> xr.DataArray:
        return xr.full_like(self.mean_ms.isel(step=0, drop=True), 4.0)

    def own_factors(self, steps: object) -> xr.DataArray:
        return xr.ones_like(self.mean_ms.isel(draw=0, drop=True))


def maps_of(servers: Any, steps: xr.Dataset | None = None, probability: float = 0.95) -> xr.Dataset:
    """The maps of the only pair; of normal servers without steps."""
    steps = xr.Dataset() if steps is None else steps
    mean_ms = servers.mean_ms if isinstance(servers, NormalServers) else servers.mean_latency_ms(steps)
    maps = latency_maps(servers, steps, mean_ms, rope=0.05, probability=probability, seed=1)
    return maps.isel(pair=0)


def test_a_known_ratio_comes_out_at_every_step(comparison: Comparison) -> None:
    assert bayes_sched.compare is compare
    covered = comparison.table[~comparison.table["extrapolation"]]
    assert len(covered) > 50
    assert covered["ratio_median"].to_numpy() == pytest.approx(RATIO, rel=0.01)
    assert (covered["verdict"] == "faster").all()
    assert (covered["p_faster"] > 0.99).all()
    assert (covered["ratio_lower"] < covered["ratio_upper"]).all()


def test_the_result_is_frozen_and_its_arrays_carry_the_dims_that_are_promised(comparison: Comparison) -> None:
    assert comparison.mean_latency_ms.dims == ("gpu", "draw", "batch_size", "total_tokens")
    assert comparison.mean_latency_ms["gpu"].to_numpy().tolist() == ["X100", "Y50"]
    assert set(comparison.maps["ratio_median"].dims) == {"pair", "batch_size", "total_tokens"}
    assert comparison.maps["pair"].to_numpy().tolist() == ["X100 / Y50"]
    assert comparison.mean_latency_ms.attrs["units"] == "ms"
    with pytest.raises(FrozenInstanceError):
        comparison.rope = 0.1  # type: ignore[misc]


def test_probabilities_to_be_fastest_add_up_to_one() -> None:
    found = compare([server(f, name=n) for f, n in ((1.0, "a"), (1.01, "b"), (1.02, "c"))], **SMALL)
    total = found.maps["p_fastest"].sum("gpu", skipna=False)
    assert total.to_numpy()[found.grid["possible"].to_numpy()] == pytest.approx(1.0)
    assert found.maps["pair"].to_numpy().tolist() == ["a / b", "a / c", "b / c"]
    assert len(found.steps) == 9


def test_more_data_are_asked_for_where_the_ratio_is_least_known() -> None:
    found = compare([server(1.04, name="vague", spread=0.05), server(name="sure", spread=0.001)])
    open_rows = found.table[(found.table["verdict"] == "undecided") & ~found.table["extrapolation"]]
    width = (open_rows["ratio_upper"] / open_rows["ratio_lower"] - 1.0).max()
    assert found.further_data["width"].iloc[0] == pytest.approx(width)
    assert found.further_data["width"].is_monotonic_decreasing
    assert set(found.further_data["measure"]) == {"vague"}


def test_the_data_that_would_decide_follow_from_the_interval() -> None:
    edge = np.log(1.05)
    assert data_factor(np.exp(-0.1), 1.0, np.exp(0.1), rope=0.05) == pytest.approx((0.1 / edge) ** 2)
    assert data_factor(0.9, 1.05, 1.2, rope=0.05) is None


def test_shares_are_of_the_grid_of_measured_steps_and_of_the_traces(
    comparison: Comparison, compared_fits: list[FittedModel]
) -> None:
    rows = by(comparison.shares, "of")
    assert set(rows) == {ON_GRID, MEASURED, IN_TRACES}
    words = ["faster", "slower", "equivalent", "undecided"]
    assert comparison.shares[words].sum(axis=1).to_numpy() == pytest.approx(1.0)
    assert rows[MEASURED]["num_steps"] < rows[ON_GRID]["num_steps"]
    assert rows[IN_TRACES]["num_steps"] == compared_fits[0].cells.sizes["cell"]


def test_swapping_the_servers_swaps_every_verdict() -> None:
    forward: Any = NormalServers(300, num_draws=400, seed=1)
    backward: Any = NormalServers(300, num_draws=400, seed=1)
    backward.mean_ms = forward.mean_ms.isel(gpu=[1, 0]).assign_coords(gpu=list(forward.labels))
    one, other = (maps_of(servers) for servers in (forward, backward))
    swap = {"faster": "slower", "slower": "faster"}
    verdicts_of = [str(word) for word in one["verdict"].to_numpy()]
    assert [swap.get(word, word) for word in verdicts_of] == other["verdict"].to_numpy().tolist()
    assert set(verdicts_of) == {"faster", "slower", "undecided", "equivalent"}
    assert (1.0 / one["ratio_median"]).to_numpy() == pytest.approx(other["ratio_median"].to_numpy(), rel=1e-3)
    assert (1.0 - one["p_faster"]).to_numpy() == pytest.approx(other["p_faster"].to_numpy(), abs=1e-9)


def test_a_steps_probability_is_that_of_simulated_steps(compared_fits: list[FittedModel]) -> None:
    fits, steps = [scaled(compared_fits[1], 0.97), compared_fits[1]], steps_arrays(16, 64)
    p = float(maps_of(servers_of(fits), steps)["p_step_faster"].item())
    first, second = (
        np.ravel(fit.sample_latency(steps, seed=seed, max_draws=None)) for seed, fit in enumerate(fits)
    )
    rng = np.random.default_rng(0)
    simulated = np.mean([(first < rng.permutation(second)).mean() for _ in range(50)])
    assert p == pytest.approx(simulated, abs=0.03)
    assert 0.55 < p < 0.95


@pytest.mark.parametrize(
    ("lower", "upper", "rope", "verdict"),
    [
        (0.8, 0.9, 0.05, "faster"),
        (0.9, 0.96, 0.05, "undecided"),
        (0.96, 1.04, 0.05, "equivalent"),
        (1.0 / 1.05, 1.05, 0.05, "equivalent"),
        (1.04, 1.06, 0.05, "undecided"),
        (1.06, 1.5, 0.05, "slower"),
        (0.5, 2.0, 0.05, "undecided"),
        (np.nan, np.nan, 0.05, ""),
        (0.999, 1.001, 0.0, "undecided"),
        (0.9, 0.999, 0.0, "faster"),
        (1.001, 1.1, 0.0, "slower"),
    ],
)
def test_a_verdict_asks_the_whole_interval(lower: float, upper: float, rope: float, verdict: str) -> None:
    assert str(verdicts(np.array(lower), np.array(upper), rope=rope)) == verdict


def test_a_verdict_is_given_on_identified_parameters_alone(compared_fits: list[FittedModel]) -> None:
    rng = np.random.default_rng(0)
    prior = compared_fits[0].metadata.priors["k_B"]
    posterior = compared_fits[0].posterior
    shape = posterior["k_B"].shape
    posterior["k_B"] = (("chain", "draw"), np.exp(prior.mu + prior.sigma * rng.standard_normal(shape)))
    servers = servers_of([with_groups(compared_fits[0], posterior=posterior), compared_fits[1]])
    values = parameter_values(servers.fits, probability=0.95)
    table = parameter_ratios(servers, values, rope=0.05, probability=0.95)
    rows = by(table, "name")
    assert rows["k_B"]["verdict"] == "none: not identified on X100"
    assert not rows["k_B"]["identified"]
    assert rows["tau_0"]["verdict"] == "lower"
    assert rows["tau_0"]["ratio_median"] == pytest.approx(RATIO, rel=0.01)
    difference = (RATIO - 1.0) * (TRUTH["w_1"] / TRUTH["P_max"] + TRUTH["tau_S"])
    assert rows["c"]["difference"] == pytest.approx(difference, rel=0.02)
    assert set(table["kind"]) == {"parameter", "noise", "combination"}


def test_posteriors_of_different_lengths_meet(compared_fits: list[FittedModel]) -> None:
    short = server(name="short", draws=60)
    mean_ms = servers_of([compared_fits[0], short]).mean_latency_ms(steps_arrays([4, 64], [4, 2048]))
    assert mean_ms.sizes == {"gpu": 2, "draw": 240, "step": 2}
    assert (mean_ms[0] / mean_ms[1]).median("draw").to_numpy() == pytest.approx(RATIO, rel=0.01)


def test_pairing_takes_no_notice_of_the_order_of_the_draws() -> None:
    values = np.arange(4000.0)
    posterior = xr.Dataset({"x": (("chain", "draw"), values.reshape(4, 1000))})
    first, second = (p["x"].to_numpy() for p in paired_posteriors([posterior, posterior], seed=1))
    assert sorted(first) == values.tolist()
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06
    again = paired_posteriors([posterior, posterior], seed=1)[1]["x"].to_numpy()
    assert (again == second).all()


def assert_calibrated(probability: NDArray[np.float64], came_true: NDArray[np.bool_]) -> None:
    """Score tests of intercept and slope: both are standard normal for probabilities that are right."""
    excess, variance = came_true - probability, probability * (1.0 - probability)
    for weight in (np.ones_like(probability), probability - 0.5):
        assert abs((excess * weight).sum() / np.sqrt((variance * weight**2).sum())) < 3.0


def test_exact_posteriors_give_intervals_and_probabilities_that_are_right() -> None:
    servers: Any = NormalServers(1000, num_draws=1000, seed=5)
    maps = maps_of(servers, probability=0.9)
    true_ratio = np.exp(servers.truth[0] - servers.truth[1])
    assert np.quantile(true_ratio, [0.1, 0.9]) == pytest.approx([0.83, 1.2], rel=0.05)
    is_covered = (maps["ratio_lower"] <= true_ratio) & (true_ratio <= maps["ratio_upper"])
    assert float(is_covered.mean()) == pytest.approx(0.9, abs=0.03)
    assert_calibrated(maps["p_faster"].to_numpy(), true_ratio < 1.0)
    assert_calibrated(maps["p_step_faster"].to_numpy(), servers.steps[0] < servers.steps[1])
    wrong = np.clip(maps["p_faster"].to_numpy() ** 2, 1e-3, 1.0 - 1e-3)
    with pytest.raises(AssertionError):
        assert_calibrated(wrong, true_ratio < 1.0)


def test_equivalent_decodes_take_equally_long(
    comparison: Comparison, compared_fits: list[FittedModel]
) -> None:
    rows = comparison.equivalents[~comparison.equivalents["extrapolation"]]
    assert set(rows["gpu"]) == {"X100", "Y50"}
    fits = dict(zip(comparison.labels, compared_fits, strict=True))
    for row in records(rows[rows["median"] >= 1.0]):
        asked = ((row["gpu"], row["batch_size"]), (row["other"], row["median"]))
        at = [fits[gpu].mean_band(steps_arrays(n, n))["median"].item() for gpu, n in asked]
        assert at[0] == pytest.approx(at[1], rel=0.02)
        assert row["lower"] <= row["median"] <= row["upper"]


def test_the_largest_number_within_a_limit_is_interpolated_and_bounded() -> None:
    points, latency = np.array([1.0, 2.0, 4.0]), np.array([[10.0, 12.0, 20.0]] * 4)
    limits = np.array([9.0, 10.0, 16.0, 25.0])
    assert largest_within(points, latency, limits).tolist() == [0.0, 1.0, 3.0, np.inf]
    falling = np.array([[15.0, 12.0, 20.0]])
    assert largest_within(points, falling, np.array([13.0])).tolist() == [2.25]


def test_throughput_and_cost_follow_from_latency(
    comparison: Comparison, compared_fits: list[FittedModel]
) -> None:
    is_case = comparison.throughput["case"].str.startswith("largest decode")
    row = by(comparison.throughput[is_case], "gpu")["X100"]
    mean_ms = compared_fits[0].mean_band(steps_arrays(64, 64))["median"].item()
    assert row["tokens_per_s"] == pytest.approx(64_000 / mean_ms, rel=1e-3)
    assert row["cost"] == pytest.approx(2.0 * 1e6 / (3600 * 64_000 / mean_ms), rel=1e-3)
    assert row["cost_lower"] < row["cost"] < row["cost_upper"]
    of_case = comparison.cost_ratios["case"].str.startswith("largest decode")
    ratios = by(comparison.cost_ratios[of_case], "quantity")
    assert ratios[TOKENS]["ratio_median"] == pytest.approx(1.0 / RATIO, rel=0.01)
    assert ratios[TOKENS]["verdict"] == "more tokens"
    assert ratios[COST]["ratio_median"] == pytest.approx(2.0 * RATIO, rel=0.01)
    assert ratios[COST]["verdict"] == "dearer"
    assert ratios[COST]["p_better"] == 0.0


def test_a_latency_limit_is_kept_and_what_sets_the_throughput_is_said(
    comparison: Comparison, compared_fits: list[FittedModel]
) -> None:
    within = comparison.throughput[comparison.throughput["case"].str.contains("within 30 ms")]
    assert len(within) == 4
    for row in records(within):
        fit = compared_fits[comparison.labels.index(row["gpu"])]
        steps = steps_arrays(row["batch_size"], row["total_tokens"])
        assert fit.quantile(steps, 0.9).item() < 30.0 * 1.02
        assert fit.in_region(steps).item()
    servers, none = servers_of(compared_fits), comparison.steps[:0]
    tight, wide = (rates_of(servers, none, slo_ms=slo_ms, slo_quantile=0.9) for slo_ms in (12.0, 1e6))
    assert BY_LIMIT in {rate.set_by for rate in tight}
    assert {rate.set_by for rate in wide} == {BY_TRACE}


def test_no_step_within_the_limit_is_no_throughput_and_no_cost(compared_fits: list[FittedModel]) -> None:
    found = compare(compared_fits, slo_ms=0.1, prices={"fast": 1.0, "slow": 1.0}, **SMALL)
    none = found.throughput[found.throughput["case"].str.contains("within")]
    assert (none["tokens_per_s"] == 0.0).all()
    assert none["cost"].isna().all()
    assert not found.cost_ratios["case"].str.contains("within").any()
