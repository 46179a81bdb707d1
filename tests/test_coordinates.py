"""Coordinates: a bijection to the logarithms of the parameters, with its Jacobian, on any trace."""

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import pytensor
import pytensor.tensor as pt
import pytest
from scipy.optimize import approx_fprime

from bayes_sched.arrays import Floats
from bayes_sched.model.priors import Prior, Priors
from bayes_sched.model.protocol import all_parameters, load_model
from bayes_sched.sampling.coordinates import LogCoordinates, ReferenceSteps, SaturationCoordinates
from bayes_sched.sampling.group_coordinates import DepartureCoordinates
from tests.simulation import INTERPRETED
from tests.synthetic_fit import simulated_steps

MODEL = load_model("saturation")
NAMES = [p.name for p in all_parameters(MODEL, "proportional")]
PRIORS = Priors.from_parameters(all_parameters(MODEL, "proportional"))


def trace(batch_size: list[int], total_tokens: list[int], latency_ms: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"batch_size": batch_size, "total_tokens": total_tokens, "latency_ms": latency_ms})


TRACES = {
    "mixed": simulated_steps(300, seed=1),
    "one cell": trace([8] * 4, [8] * 4, [9.0, 9.5, 10.0, 9.2]),
    "one step": trace([1], [1], [5.0]),
    "decode only": trace([1, 2, 4, 8, 16] * 3, [1, 2, 4, 8, 16] * 3, list(np.linspace(5.0, 9.0, 15))),
    "two cells": trace([1, 1, 64, 64], [1, 1, 2048, 2048], [5.0, 5.5, 80.0, 82.0]),
    "equal latencies": trace([1, 2, 3], [10, 20, 700], [7.0, 7.0, 7.0]),
    "falling latencies": trace([1, 2, 3, 4], [10, 200, 700, 4000], [70.0, 30.0, 9.0, 2.0]),
}


KINDS: dict[str, Callable[..., SaturationCoordinates]] = {
    "equation": SaturationCoordinates,
    "departures": partial(DepartureCoordinates, departure=0.2),
}


@pytest.fixture(params=product(KINDS, TRACES), ids=" ".join)
def coordinates(request: pytest.FixtureRequest) -> SaturationCoordinates:
    kind, name = request.param
    return KINDS[kind](TRACES[name], PRIORS, ("nu", "sigma_rel", "sigma_floor"))


@pytest.fixture
def mixed() -> SaturationCoordinates:
    return SaturationCoordinates(TRACES["mixed"], PRIORS, ("nu", "sigma_rel", "sigma_floor"))


def prior_logs(size: int, *, seed: int, width: float = 1.0) -> dict[str, Floats]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(p.mu, width * p.sigma, size) for name, p in PRIORS.items()}


def stacked(logs: dict[str, Floats]) -> Floats:
    return np.stack([logs[name] for name in NAMES], axis=-1)


def test_parameters_survive_the_way_there_and_back(coordinates: SaturationCoordinates) -> None:
    logs = prior_logs(500, seed=0)
    there = coordinates.from_logs(logs)
    assert there.shape == (500, len(coordinates.names)) == (500, len(NAMES))
    assert np.isfinite(there).all()
    back, _ = coordinates.to_logs(there, np)
    # A parameter that hides behind a million times its size keeps ten digits fewer than sixteen.
    assert stacked(back) == pytest.approx(stacked(logs), abs=1e-6)


def test_the_log_jacobian_is_that_of_the_numerical_determinant(coordinates: SaturationCoordinates) -> None:
    points = coordinates.from_logs(prior_logs(20, seed=1))
    _, log_jacobian = coordinates.to_logs(points, np)
    step = 1e-5
    for point, expected in zip(points, log_jacobian, strict=True):
        scale = step * np.maximum(1.0, np.abs(point))
        ahead = stacked(coordinates.to_logs(point + np.diag(scale), np)[0])
        behind = stacked(coordinates.to_logs(point - np.diag(scale), np)[0])
        sign, numeric = np.linalg.slogdet((ahead - behind) / (2 * scale[:, None]))
        assert sign != 0
        # Central differences err by the square of a relative step of 1e-5, times curvature.
        assert numeric == pytest.approx(expected, abs=1e-4)


def test_pytensor_agrees_with_numpy(mixed: SaturationCoordinates) -> None:
    point = pt.vector("point", shape=(len(NAMES),))
    logs, log_jacobian = mixed.to_logs(point, pt)
    function = pytensor.function([point], [*(logs[name] for name in NAMES), log_jacobian], mode=INTERPRETED)
    for row in mixed.from_logs(prior_logs(10, seed=2)):
        expected, jacobian = mixed.to_logs(row, np)
        result = np.array([float(value) for value in function(row)])
        assert result == pytest.approx(
            [*(float(expected[name]) for name in NAMES), float(jacobian)], rel=1e-9
        )


def test_parameters_far_in_the_prior_tails_have_finite_coordinates(
    coordinates: SaturationCoordinates,
) -> None:
    logs = prior_logs(1000, seed=3, width=2.0)
    there = coordinates.from_logs(logs)
    assert np.isfinite(there).all()
    back, log_jacobian = coordinates.to_logs(there, np)
    assert np.isfinite(stacked(back)).all()
    assert np.isfinite(log_jacobian).all()


@pytest.mark.parametrize("size", [-30.0, 30.0])
def test_shares_far_out_are_exponentials_without_loss(mixed: SaturationCoordinates, size: float) -> None:
    centre = mixed.from_logs({name: np.float64(p.mu) for name, p in PRIORS.items()})
    for name in ("slope_share", "level_share"):
        point = centre.copy()
        point[mixed.names.index(name)] = size
        logs, log_jacobian = mixed.to_logs(point, np)
        assert np.isfinite([*logs.values(), log_jacobian]).all()
    point = centre.copy()
    at = mixed.names.index("slope_share")
    point[at] = -30.0
    near, _ = mixed.to_logs(point, np)
    point[at] = -31.0
    far, _ = mixed.to_logs(point, np)
    # The share falls by e for each unit, and with it the work per token; the other part of the slope stays.
    a_1 = [logs["w_1"] - logs["P_max"] for logs in (near, far)]
    assert a_1[0] - a_1[1] == pytest.approx(1.0, abs=1e-6)
    assert near["tau_S"] == pytest.approx(far["tau_S"], abs=1e-6)


def test_throughput_is_a_standard_normal_a_priori_and_independent_of_what_data_see(
    mixed: SaturationCoordinates,
) -> None:
    size = 20_000
    logs = prior_logs(size, seed=4)
    throughput = mixed.from_logs(logs)[:, mixed.names.index("throughput")]
    assert throughput.mean() == pytest.approx(0.0, abs=4 / np.sqrt(size))
    assert throughput.std() == pytest.approx(1.0, abs=4 / np.sqrt(2 * size))
    for name in ("w_0", "w_1"):
        correlation = np.corrcoef(throughput, logs[name] - logs["P_max"])[0, 1]
        assert correlation == pytest.approx(0.0, abs=4 / np.sqrt(size))


def test_throughput_changes_nothing_that_the_equation_sees(mixed: SaturationCoordinates) -> None:
    point = mixed.from_logs({name: np.float64(p.mu) for name, p in PRIORS.items()})
    moved = point.copy()
    moved[mixed.names.index("throughput")] += 2.0
    before, after = (mixed.to_logs(x, np)[0] for x in (point, moved))
    for name in set(NAMES) - {"P_max", "w_0", "w_1"}:
        assert after[name] == pytest.approx(before[name], abs=1e-12)
    for name in ("w_0", "w_1"):
        assert after[name] - after["P_max"] == pytest.approx(before[name] - before["P_max"], abs=1e-12)
    assert after["P_max"] > before["P_max"] + 0.1


def test_noise_parameters_keep_their_logarithms(mixed: SaturationCoordinates) -> None:
    assert mixed.names[-3:] == ("log_nu", "log_sigma_rel", "log_sigma_floor")
    logs = prior_logs(5, seed=5)
    np.testing.assert_array_equal(mixed.from_logs(logs)[:, -1], logs["sigma_floor"])


def test_the_search_for_modes_scans_rates_and_shares(mixed: SaturationCoordinates) -> None:
    scanned = {name for name, scale in zip(mixed.names, mixed.scan_scale, strict=True) if scale > 0}
    assert scanned == {"log_k_B", "log_k_S", "slope_share", "level_share"}
    assert mixed.scan_mean[mixed.names.index("log_k_S")] == PRIORS["k_S"].mu


@pytest.mark.parametrize("name", list(TRACES))
def test_a_trace_is_summarised_by_a_few_steps_whatever_it_holds(name: str) -> None:
    reference = ReferenceSteps.from_steps(TRACES[name])
    assert 1 <= len(reference.batch_size) <= 64
    for values in (reference.precision, reference.projection, reference.fit, reference.width):
        assert np.isfinite(values).all()
    assert (reference.precision > 0).all()
    assert (reference.fit > 0).all()
    cells = TRACES[name][["batch_size", "total_tokens"]].to_numpy(float)
    for values, seen in zip((reference.batch_size, reference.total_tokens), cells.T, strict=True):
        # Weighted means of cells: inside, up to rounding.
        assert values.min() >= seen.min() * (1 - 1e-12)
        assert values.max() <= seen.max() * (1 + 1e-12)


def test_a_linear_trace_is_projected_on_its_own_coefficients() -> None:
    rng = np.random.default_rng(6)
    steps = pd.DataFrame(
        {"batch_size": rng.integers(1, 65, 400), "total_tokens": rng.integers(65, 4000, 400)}
    )
    steps["latency_ms"] = 5.0 + 0.1 * steps["batch_size"] + 0.02 * steps["total_tokens"]
    # The ridge of 1e-6 of each term's weight, and latencies averaged over cells of unlike size.
    assert ReferenceSteps.from_steps(steps).fit == pytest.approx([5.0, 0.1, 0.02], rel=1e-3)


def test_logarithms_are_the_fallback_for_models_without_coordinates() -> None:
    fallback = LogCoordinates(Priors([Prior("a", 0.1, 10.0), Prior("b", 1.0, 100.0)]))
    assert fallback.names == ("log_a", "log_b")
    logs = {"a": np.array([0.5, 1.0]), "b": np.array([-2.0, 3.0])}
    there = fallback.from_logs(logs)
    np.testing.assert_array_equal(there, [[0.5, -2.0], [1.0, 3.0]])
    back, log_jacobian = fallback.to_logs(there, np)
    np.testing.assert_array_equal(back["b"], logs["b"])
    np.testing.assert_array_equal(log_jacobian, [0.0, 0.0])
    assert fallback.scan_mean == pytest.approx([0.0, np.log(10.0)])
    assert fallback.scan_scale == pytest.approx([2 * np.log(100.0) / (2 * 1.959964)] * 2, rel=1e-6)


def departing() -> SaturationCoordinates:
    return KINDS["departures"](TRACES["mixed"], PRIORS, ("nu", "sigma_rel", "sigma_floor"))


def test_where_the_curve_takes_the_level_over_only_the_logarithm_of_what_is_left_goes_on() -> None:
    """No wall: the rate goes down by 5, the fixed latency by a factor of e^5, and k_S stays where it is."""
    coordinates = departing()
    logs = {name: np.full(1, prior.mu) for name, prior in PRIORS.items()}
    logs |= {"w_0": np.full(1, -30.0), "tau_0": np.full(1, -12.0)}
    near = coordinates.from_logs(logs)
    further = near.copy()
    further[:, coordinates.names.index("rate")] -= 5.0
    found, _ = coordinates.to_logs(further, np)
    assert found["tau_0"] - logs["tau_0"] == pytest.approx([-5.0], abs=1e-3)
    assert found["k_S"] == pytest.approx(logs["k_S"], abs=1e-3)
    assert found["w_1"] - found["P_max"] == pytest.approx(logs["w_1"] - logs["P_max"], abs=1e-3)


def test_noise_is_a_scale_at_the_typical_latency_and_the_share_of_its_floor() -> None:
    coordinates = departing()
    logs = prior_logs(20, seed=7)
    there = coordinates.from_logs(logs)
    typical = TRACES["mixed"]["latency_ms"].median()
    scale = np.hypot(np.exp(logs["sigma_floor"]), np.exp(logs["sigma_rel"]) * typical)
    assert there[:, coordinates.names.index("log_scale")] == pytest.approx(np.log(scale))
    share = np.exp(2.0 * logs["sigma_floor"]) / scale**2
    order = there[:, coordinates.names.index("floor_share")].argsort()
    assert (np.diff(share[order]) > 0).all()


def test_the_noise_of_steps_with_prefill_is_a_scale_at_their_own_typical_latency() -> None:
    noise = ("sigma_rel", "sigma_floor", "sigma_prefill", "sigma_prefill_floor")
    extra = [Prior(name, 0.01, 0.3) for name in noise[2:]]
    steps = TRACES["mixed"].assign(num_prefill_reqs=np.arange(len(TRACES["mixed"])) % 3)
    coordinates = KINDS["departures"](steps, Priors([*PRIORS.values(), *extra]), noise)
    logs = prior_logs(20, seed=7)
    logs |= {"sigma_prefill": logs["sigma_rel"] + 0.3, "sigma_prefill_floor": logs["sigma_floor"] - 0.2}
    there = coordinates.from_logs(logs)
    for names, own in (
        (("sigma_rel", "sigma_floor", "log_scale"), steps["num_prefill_reqs"] == 0),
        (("sigma_prefill", "sigma_prefill_floor", "log_prefill_scale"), steps["num_prefill_reqs"] > 0),
    ):
        relative, floor, found = names
        typical = steps.loc[own, "latency_ms"].median()
        scale = np.hypot(np.exp(logs[floor]), np.exp(logs[relative]) * typical)
        assert there[:, coordinates.names.index(found)] == pytest.approx(np.log(scale))
    back, _ = coordinates.to_logs(there, np)
    for name in noise:
        assert back[name] == pytest.approx(logs[name], abs=1e-9)


def test_the_gradient_through_the_root_is_that_of_its_values() -> None:
    coordinates = departing()
    point = pt.vector("point", shape=(len(NAMES),))
    logs, log_jacobian = coordinates.to_logs(point, pt)
    total = log_jacobian + sum(logs.values())
    function = pytensor.function([point], [total, pytensor.grad(total, point)], mode=INTERPRETED)

    def value(x: Floats) -> float:
        return float(function(x)[0])

    for x in coordinates.from_logs(prior_logs(3, seed=8)):
        numeric = approx_fprime(x, value, 1e-6)
        assert function(x)[1] == pytest.approx(numeric, rel=1e-3, abs=1e-3)


def test_what_was_compiled_follows_the_geometry_to_another_trace() -> None:
    traces = list(TRACES.values())
    adapted = SaturationCoordinates(traces[0], PRIORS, ("nu", "sigma_rel", "sigma_floor"))
    point = pt.vector("point", shape=(len(NAMES),))
    logs, log_jacobian = adapted.to_logs(point, pt)
    function = pytensor.function([point], [logs["tau_0"], log_jacobian], mode=INTERPRETED)
    for steps in (traces[1], traces[0]):
        adapted.adapt(steps)
        expected = SaturationCoordinates(steps, PRIORS, ("nu", "sigma_rel", "sigma_floor"))
        for row in expected.from_logs(prior_logs(5, seed=7)):
            value, jacobian = expected.to_logs(row, np)
            assert [float(x) for x in function(row)] == pytest.approx([value["tau_0"], jacobian], rel=1e-9)
            assert adapted.to_logs(row, np)[1] == jacobian
