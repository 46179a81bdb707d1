"""Ratios and verdicts: they keep their rule, and intervals and probabilities are right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from bayes_sched.comparison.latency import latency_maps, parameter_ratios, parameter_values
from bayes_sched.comparison.members import members_of
from bayes_sched.comparison.verdicts import paired_posteriors, verdicts
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.steps import steps_arrays
from tests.comparison_fits import RATIO, by, scaled, server, servers_of, with_groups
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


def maps_of(servers: Any, steps: xr.Dataset | None = None, probability: float = 0.95) -> xr.Dataset:
    """The maps of the only pair; of normal servers without steps."""
    steps = xr.Dataset() if steps is None else steps
    mean_ms = servers.mean_ms if isinstance(servers, NormalServers) else servers.mean_latency_ms(steps)
    maps = latency_maps(servers, steps, mean_ms, rope=0.05, probability=probability, seed=1)
    return maps.isel(pair=0)


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
    ("lower", "upper", "verdict"),
    [
        (0.8, 0.9, "faster"),
        (0.9, 0.96, "undecided"),
        (0.96, 1.04, "equivalent"),
        (1.0 / 1.05, 1.05, "equivalent"),
        (1.04, 1.06, "undecided"),
        (1.06, 1.5, "slower"),
        (0.5, 2.0, "undecided"),
        (np.nan, np.nan, ""),
    ],
)
def test_a_verdict_asks_the_whole_interval(lower: float, upper: float, verdict: str) -> None:
    assert str(verdicts(np.array(lower), np.array(upper), rope=0.05)) == verdict


def test_without_a_region_nothing_is_equivalent() -> None:
    lower, upper = np.array([0.999, 0.9, 1.001]), np.array([1.001, 0.999, 1.1])
    assert verdicts(lower, upper, rope=0.0).tolist() == ["undecided", "faster", "slower"]


def test_a_verdict_is_given_on_identified_parameters_alone(compared_fits: list[FittedModel]) -> None:
    rng = np.random.default_rng(0)
    prior = compared_fits[0].metadata.priors["k_B"]
    posterior = compared_fits[0].posterior
    shape = posterior["k_B"].shape
    posterior["k_B"] = (("chain", "draw"), np.exp(prior.mu + prior.sigma * rng.standard_normal(shape)))
    fits = [with_groups(compared_fits[0], posterior=posterior), compared_fits[1]]
    values = parameter_values(members_of(fits, prices={}), probability=0.95)
    table = parameter_ratios(servers_of(fits), values, rope=0.05, probability=0.95)
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
    num = 1000
    servers: Any = NormalServers(num, num_draws=1000, seed=5)
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
