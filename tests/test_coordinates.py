"""Coordinates: a bijection to the logarithms of the parameters and to log factors, with its Jacobian."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytensor
import pytensor.tensor as pt
import pytest
import xarray as xr
from scipy.optimize import approx_fprime

from bayes_sched.arrays import Floats
from bayes_sched.model.equation import Parameter
from bayes_sched.model.likelihood import Effect, effects_of, with_effects
from bayes_sched.model.priors import Prior, Priors
from bayes_sched.model.protocol import Coordinates, all_parameters, load_model
from bayes_sched.sampling.coordinates import (
    LogCoordinates,
    ReferenceSteps,
    SaturationCoordinates,
    with_positive_latencies,
)
from bayes_sched.sampling.group_coordinates import DepartureCoordinates, EffectCoordinates
from bayes_sched.sampling.whitened import LevelCoordinates
from tests.simulation import INTERPRETED
from tests.staircase import staircase_steps
from tests.synthetic_fit import simulated_steps

PRIORS = Priors.from_parameters(all_parameters(load_model("saturation"), "proportional"))
OTHERS = ("nu", "sigma_rel", "sigma_floor")
STAIRCASE: Any = load_model("saturation_staircase")
STAIRCASE_PRIORS = Priors.from_parameters(all_parameters(STAIRCASE, "regime"))
STAIRCASE_STEPS = staircase_steps(400, seed=1)
(FACTOR,) = effects_of(STAIRCASE)
LEVELS: Any = load_model("saturation_levels_context")
LEVELS_PRIORS = Priors.from_parameters(all_parameters(LEVELS, "levels"))
DECODES = STAIRCASE_STEPS[STAIRCASE_STEPS["num_prefill_reqs"] == 0]
FACTORS = list(dict.fromkeys([FACTOR.name, *(effect.name for effect in effects_of(LEVELS))]))


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
LEVEL_CASES = [("levels",), ("levels", "centred"), ("levels", "decode only")]
KINDS: dict[str, Callable[..., SaturationCoordinates]] = {
    "equation": SaturationCoordinates,
    "departures": partial(DepartureCoordinates, departure=0.2),
}


def stairs() -> EffectCoordinates:
    found: EffectCoordinates = STAIRCASE.coordinates(STAIRCASE_STEPS, STAIRCASE_PRIORS, noise="regime")
    return found


def prior_logs(size: int, *, seed: int, width: float = 1.0) -> dict[str, Floats]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(p.mu, width * p.sigma, size) for name, p in PRIORS.items()}


def staircase_logs(size: int, *, seed: int, width: float = 1.0) -> dict[str, Floats]:
    rng = np.random.default_rng(seed)
    logs = {name: rng.normal(p.mu, width * p.sigma, size) for name, p in STAIRCASE_PRIORS.items()}
    factors = FACTOR.draw(np.exp(logs[FACTOR.scale.name]), rng)
    return logs | {FACTOR.name: factors[:, FACTOR.seen(STAIRCASE_STEPS)]}


def levels(steps: pd.DataFrame = STAIRCASE_STEPS) -> LevelCoordinates:
    found: LevelCoordinates = LEVELS.coordinates(steps, LEVELS_PRIORS, noise="levels")
    return found


def level_logs(
    size: int, *, seed: int, width: float = 1.0, steps: pd.DataFrame = STAIRCASE_STEPS
) -> dict[str, Floats]:
    rng = np.random.default_rng(seed)
    logs = {name: rng.normal(p.mu, width * p.sigma, size) for name, p in LEVELS_PRIORS.items()}
    drawn = {e.name: e.draw(np.exp(logs[e.scale.name]), rng)[:, e.seen(steps)] for e in effects_of(LEVELS)}
    return logs | drawn


def flat(logs: Mapping[str, Any]) -> Floats:
    """Parameters in a fixed order, then factors, along the last axis."""
    scalars = [name for name in logs if name not in FACTORS]
    columns = [np.asarray(logs[name])[..., None] for name in sorted(scalars)]
    return np.concatenate([*columns, *(logs[name] for name in FACTORS if name in logs)], axis=-1)


@dataclass
class Case:
    """Coordinates, draws of what they are of, and another trace to adapt to."""

    coordinates: Coordinates
    draw: Callable[..., dict[str, Floats]]
    other: pd.DataFrame


def case(kind: str, name: str = "mixed") -> Case:
    if kind == "stairs":
        other = STAIRCASE_STEPS.assign(latency_ms=2.0 * STAIRCASE_STEPS["latency_ms"] + 1.0)
        return Case(stairs(), staircase_logs, other)
    if kind == "levels":
        steps = DECODES if name == "decode only" else STAIRCASE_STEPS
        found = levels(steps)
        if name == "centred":
            mode = found.from_logs(level_logs(1, seed=9))[0]
            found.centre(mode, np.diag(np.random.default_rng(9).uniform(0.1, 2.0, len(mode))))
        other = steps.assign(latency_ms=2.0 * steps["latency_ms"] + 1.0)
        return Case(found, partial(level_logs, steps=steps), other)
    return Case(KINDS[kind](TRACES[name], PRIORS, OTHERS), prior_logs, TRACES["one cell"])


@pytest.fixture(params=[*product(KINDS, TRACES), ("stairs",), *LEVEL_CASES], ids=" ".join)
def any_case(request: pytest.FixtureRequest) -> Case:
    return case(*request.param)


@pytest.fixture
def mixed() -> SaturationCoordinates:
    return SaturationCoordinates(TRACES["mixed"], PRIORS, OTHERS)


def test_parameters_survive_the_way_there_and_back_and_prior_tails_are_finite(any_case: Case) -> None:
    logs = any_case.draw(500, seed=0)
    there = any_case.coordinates.from_logs(logs)
    assert there.shape == (500, len(any_case.coordinates.names)) == flat(logs).shape
    assert np.isfinite(there).all()
    back, _ = any_case.coordinates.to_logs(there, np)
    # A parameter that hides behind a million times its size keeps ten digits fewer than sixteen.
    assert flat(back) == pytest.approx(flat(logs), abs=1e-6)
    if any_case.draw is prior_logs:
        far = any_case.coordinates.from_logs(prior_logs(1000, seed=3, width=2.0))
        back, log_jacobian = any_case.coordinates.to_logs(far, np)
        for values in (far, flat(back), log_jacobian):
            assert np.isfinite(values).all()


def test_the_log_jacobian_is_that_of_the_numerical_determinant(any_case: Case) -> None:
    size, width = (20, 1.0) if any_case.draw is prior_logs else (5, 0.5)
    points = any_case.coordinates.from_logs(any_case.draw(size, seed=1, width=width))
    _, log_jacobian = any_case.coordinates.to_logs(points, np)
    for point, expected in zip(points, log_jacobian, strict=True):
        scale = 1e-5 * np.maximum(1.0, np.abs(point))
        ahead = flat(any_case.coordinates.to_logs(point + np.diag(scale), np)[0])
        behind = flat(any_case.coordinates.to_logs(point - np.diag(scale), np)[0])
        sign, numeric = np.linalg.slogdet((ahead - behind) / (2 * scale[:, None]))
        assert sign != 0
        # Central differences err by the square of a relative step of 1e-5, times curvature.
        assert numeric == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", [*KINDS, "stairs", "levels"])
def test_pytensor_agrees_with_numpy_and_what_was_compiled_follows_to_another_trace(kind: str) -> None:
    tried = case(kind)
    point = pt.vector("point", shape=(len(tried.coordinates.names),))
    logs, log_jacobian = tried.coordinates.to_logs(point, pt)
    function = pytensor.function([point], [*logs.values(), log_jacobian], mode=INTERPRETED)
    before = tried.coordinates.from_logs(tried.draw(5, seed=2))
    for adapted in (False, True):
        if adapted:
            tried.coordinates.adapt(tried.other)
        rows = tried.coordinates.from_logs(tried.draw(5, seed=2))
        assert (rows == before).all() != adapted
        for row in rows:
            expected, jacobian = tried.coordinates.to_logs(row, np)
            *found, found_jacobian = function(row)
            assert flat(dict(zip(logs, found, strict=True))) == pytest.approx(flat(expected), rel=1e-9)
            assert float(found_jacobian) == pytest.approx(float(jacobian), rel=1e-9)


@pytest.mark.parametrize("size", [-30.0, 30.0])
def test_shares_far_out_are_exponentials_without_loss(mixed: SaturationCoordinates, size: float) -> None:
    centre = mixed.from_logs({name: np.float64(p.mu) for name, p in PRIORS.items()})

    def moved(name: str, value: float) -> tuple[dict[str, Any], Any]:
        point = centre.copy()
        point[mixed.names.index(name)] = value
        return mixed.to_logs(point, np)

    for name in ("slope_share", "level_share"):
        logs, log_jacobian = moved(name, size)
        assert np.isfinite([*logs.values(), log_jacobian]).all()
    near, far = (moved("slope_share", value)[0] for value in (-30.0, -31.0))
    # The share falls by e for each unit, and with it the work per token; the other part of the slope stays.
    a_1 = [logs["w_1"] - logs["P_max"] for logs in (near, far)]
    assert a_1[0] - a_1[1] == pytest.approx(1.0, abs=1e-6)
    assert near["tau_S"] == pytest.approx(far["tau_S"], abs=1e-6)


def test_throughput_is_a_standard_normal_a_priori_and_changes_nothing_that_data_see(
    mixed: SaturationCoordinates,
) -> None:
    size, at = 20_000, mixed.names.index("throughput")
    logs = prior_logs(size, seed=4)
    throughput = mixed.from_logs(logs)[:, at]
    assert throughput.mean() == pytest.approx(0.0, abs=4 / np.sqrt(size))
    assert throughput.std() == pytest.approx(1.0, abs=4 / np.sqrt(2 * size))
    for name in ("w_0", "w_1"):
        correlation = np.corrcoef(throughput, logs[name] - logs["P_max"])[0, 1]
        assert correlation == pytest.approx(0.0, abs=4 / np.sqrt(size))
    point = mixed.from_logs({name: np.float64(p.mu) for name, p in PRIORS.items()})
    before, after = (mixed.to_logs(point + by * np.eye(len(point))[at], np)[0] for by in (0.0, 2.0))
    for name in PRIORS:
        shift = after["P_max"] - before["P_max"] if name in {"P_max", "w_0", "w_1"} else 0.0
        assert after[name] - before[name] == pytest.approx(shift, abs=1e-12)
    assert after["P_max"] > before["P_max"] + 0.1


def test_noise_keeps_its_logarithms_and_rates_and_shares_are_scanned(mixed: SaturationCoordinates) -> None:
    assert mixed.names[-3:] == ("log_nu", "log_sigma_rel", "log_sigma_floor")
    logs = prior_logs(5, seed=5)
    np.testing.assert_array_equal(mixed.from_logs(logs)[:, -1], logs["sigma_floor"])
    scanned = {name for name, scale in zip(mixed.names, mixed.scan_scale, strict=True) if scale > 0}
    assert scanned == {"log_k_B", "log_k_S", "slope_share", "level_share"}
    assert mixed.scan_mean[mixed.names.index("log_k_S")] == PRIORS["k_S"].mu


@pytest.mark.parametrize("name", TRACES)
def test_a_trace_is_summarised_by_a_few_steps_whatever_it_holds(name: str) -> None:
    reference = ReferenceSteps.from_steps(TRACES[name])
    assert 1 <= len(reference.batch_size) <= 64
    assert all(np.isfinite(values).all() for values in vars(reference).values())
    assert (reference.precision > 0).all()
    assert (reference.fit > 0).all()
    for column in ("batch_size", "total_tokens"):
        values, seen = getattr(reference, column), TRACES[name][column]
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
    there = fallback.from_logs({"a": np.array([0.5, 1.0]), "b": np.array([-2.0, 3.0])})
    np.testing.assert_array_equal(there, [[0.5, -2.0], [1.0, 3.0]])
    back, log_jacobian = fallback.to_logs(there, np)
    np.testing.assert_array_equal([back["b"], log_jacobian], [[-2.0, 3.0], [0.0, 0.0]])
    assert fallback.scan_mean == pytest.approx([0.0, np.log(10.0)])
    assert fallback.scan_scale == pytest.approx([2 * np.log(100.0) / (2 * 1.959964)] * 2, rel=1e-6)


def test_where_the_curve_takes_the_level_over_only_the_logarithm_of_what_is_left_goes_on() -> None:
    """No wall: the rate goes down by 5, the fixed latency by a factor of e^5, and k_S stays where it is."""
    coordinates = case("departures").coordinates
    logs = {name: np.full(1, prior.mu) for name, prior in PRIORS.items()}
    logs |= {"w_0": np.full(1, -30.0), "tau_0": np.full(1, -12.0)}
    further = coordinates.from_logs(logs)
    further[:, coordinates.names.index("rate")] -= 5.0
    found, _ = coordinates.to_logs(further, np)
    assert found["tau_0"] - logs["tau_0"] == pytest.approx([-5.0], abs=1e-3)
    assert found["k_S"] == pytest.approx(logs["k_S"], abs=1e-3)
    assert found["w_1"] - found["P_max"] == pytest.approx(logs["w_1"] - logs["P_max"], abs=1e-3)


@pytest.mark.parametrize("regime", ["all", "decode", "prefill"])
def test_noise_is_a_scale_at_the_typical_latency_of_its_steps_and_the_share_of_its_floor(regime: str) -> None:
    steps, priors = TRACES["mixed"], PRIORS
    logs = prior_logs(20, seed=7)
    names, own = ("sigma_rel", "sigma_floor", "log_scale", "floor_share"), steps["latency_ms"] > 0.0
    if regime != "all":
        steps = steps.assign(num_prefill_reqs=np.arange(len(steps)) % 3)
        extra = {"sigma_prefill": logs["sigma_rel"] + 0.3, "sigma_prefill_floor": logs["sigma_floor"] - 0.2}
        priors = Priors([*PRIORS.values(), *(Prior(name, 0.01, 0.3) for name in extra)])
        logs |= extra
        own = (steps["num_prefill_reqs"] > 0) == (regime == "prefill")
        if regime == "prefill":
            names = ("sigma_prefill", "sigma_prefill_floor", "log_prefill_scale", "prefill_floor_share")
    coordinates = KINDS["departures"](steps, priors, tuple(logs)[8:])
    there = coordinates.from_logs(logs)
    relative, floor, log_scale, share = names
    scale = np.hypot(np.exp(logs[floor]), np.exp(logs[relative]) * steps.loc[own, "latency_ms"].median())
    assert there[:, coordinates.names.index(log_scale)] == pytest.approx(np.log(scale))
    order = there[:, coordinates.names.index(share)].argsort()
    assert (np.diff((np.exp(2.0 * logs[floor]) / scale**2)[order]) > 0).all()
    assert flat(coordinates.to_logs(there, np)[0]) == pytest.approx(flat(logs), abs=1e-6)


def test_the_gradient_through_the_root_is_that_of_its_values() -> None:
    coordinates = case("departures").coordinates
    point = pt.vector("point", shape=(len(PRIORS),))
    logs, log_jacobian = coordinates.to_logs(point, pt)
    total = log_jacobian + sum(logs.values())
    function = pytensor.function([point], [total, pytensor.grad(total, point)], mode=INTERPRETED)

    def value(x: Floats) -> float:  # pytensor agrees with numpy, which is faster
        logs, log_jacobian = coordinates.to_logs(x, np)
        return float(log_jacobian + sum(logs.values()))

    for x in coordinates.from_logs(prior_logs(3, seed=8)):
        assert function(x)[1] == pytest.approx(approx_fprime(x, value, 1e-6), rel=1e-3, abs=1e-3)


def effect(*upper: float, prefill: bool = True) -> Effect:
    spread = Parameter("s", "s", "spread", "1", 0.01, 0.3)
    return Effect("factor", "log factors", spread, "total_tokens", upper, prefill)


def test_a_level_holds_its_upper_end_the_last_is_open_and_one_value_is_its_name() -> None:
    levels = effect(16, 32, 64)
    assert levels.labels == ("1-16", "17-32", "33-64", ">64")
    assert levels.level([1, 16, 17, 64, 65, 10_000]).tolist() == [0, 0, 1, 2, 3, 3]
    assert effect(1, 2, 4).labels == ("1", "2", "3-4", ">4")


def test_an_effect_acts_on_steps_with_prefill_or_on_the_others_and_sees_their_levels() -> None:
    table = {"total_tokens": [8.0, 300.0], "num_prefill_reqs": [0.0, 1.0]}
    steps = xr.Dataset({name: ("step", values) for name, values in table.items()})
    draws = xr.Dataset({"factor": (("draw", "factor_level"), [[0.1, 0.2], [0.3, 0.4]])})
    prefill, decode = (effect(16, prefill=acts).at(draws, steps) for acts in (True, False))
    assert prefill.transpose("draw", "step").to_numpy().tolist() == [[0.0, 0.2], [0.0, 0.4]]
    assert decode.transpose("draw", "step").to_numpy().tolist() == [[0.1, 0.0], [0.3, 0.0]]
    rows = pd.DataFrame({"total_tokens": [8, 300, 20], "num_prefill_reqs": [0, 1, 1]})
    assert effect(16, 32, 64).seen(rows).tolist() == [1, 3]
    assert effects_of(load_model("saturation")) == ()


@pytest.mark.parametrize(
    ("fade", "relative"), [(np.inf, [1.0] * 4), (256.0, [16 / 17, 1 / 2, 1 / 17, 1 / 17])]
)
def test_drawn_factors_have_the_spread_of_their_population_as_it_fades(
    fade: float, relative: list[float]
) -> None:
    fading = replace(effect(16, 256, 4096), fade=fade)
    scale = xr.Dataset({"s": ("draw", np.full(20_000, 0.2))})
    drawn = with_effects(scale, [fading], np.random.default_rng(0))["factor"]
    assert drawn.dims == ("draw", "factor_level")
    assert drawn["factor_level"].to_numpy().tolist() == ["1-16", "17-256", "257-4096", ">4096"]
    assert drawn.std("draw").to_numpy() == pytest.approx(0.2 * np.array(relative), rel=0.02)


def test_an_absurd_trace_with_negative_latencies_leaves_a_geometry_to_sample_in() -> None:
    mapped, logs = stairs(), staircase_logs(1, seed=4)
    is_decode = STAIRCASE_STEPS["num_prefill_reqs"] == 0
    absurd = STAIRCASE_STEPS.assign(latency_ms=STAIRCASE_STEPS["latency_ms"].where(is_decode, -5.0))
    with np.errstate(invalid="ignore"):
        mapped.adapt(absurd)
        assert np.isnan(mapped.from_logs(logs)).any()
    mapped.adapt(with_positive_latencies(absurd))
    back, log_jacobian = mapped.to_logs(mapped.from_logs(logs), np)
    assert flat(back) == pytest.approx(flat(logs), abs=1e-6)
    assert np.isfinite(log_jacobian).all()


def test_at_the_coordinate_origin_a_level_with_many_steps_has_the_factor_its_steps_ask_for() -> None:
    mapped, level = stairs(), FACTOR.labels.index("481-512")
    at_level = FACTOR.level(STAIRCASE_STEPS["total_tokens"]) == level
    acted = STAIRCASE_STEPS[FACTOR.acts_on(STAIRCASE_STEPS) & at_level]
    logs = staircase_logs(20, seed=3, width=0.3)
    logs[FACTOR.scale.name] = np.zeros(20)  # a wide population leaves the level to its own steps
    points = mapped.from_logs(logs)
    points[:, mapped.names.index("prefill_factor[481-512]")] = 0.0
    back, _ = mapped.to_logs(points, np)
    theta = {name: np.exp(back[name]) for name in STAIRCASE_PRIORS}
    work, rest = STAIRCASE.split(theta, {name: acted[name].mean() for name in STAIRCASE.columns})
    typical = acted["latency_ms"].median()
    compared = rest < 0.5 * typical
    assert compared.sum() >= 5
    found = back[FACTOR.name][:, FACTOR.seen(STAIRCASE_STEPS).tolist().index(level)]
    expected = np.log((typical - rest[compared]) / work[compared])
    assert found[compared] == pytest.approx(expected, abs=0.02)


def test_at_the_coordinate_origin_a_level_with_many_steps_takes_as_long_as_they_do() -> None:
    """Whatever the equation says: its parameters and the factor of the level make it up between them."""
    mapped = levels()
    logs = {name: value for name, value in level_logs(20, seed=3).items() if name in LEVELS_PRIORS}
    logs["s_p"] = np.zeros(20)  # a wide population leaves the level to its own steps
    back, _ = mapped.to_logs(mapped.from_logs(logs), np)  # factors that are not given are at the origin
    (effect,) = (effect for effect in effects_of(LEVELS) if effect.name == "prefill_factor")
    acted = STAIRCASE_STEPS[effect.acts_on(STAIRCASE_STEPS)]
    level = effect.level(acted["total_tokens"])
    most = int(np.bincount(level).argmax())
    own = acted[level == most]
    theta = {name: np.exp(back[name]) for name in LEVELS_PRIORS}
    smooth = LEVELS.smooth(theta, {name: own[name].mean() for name in LEVELS.columns})
    found = smooth * np.exp(back[effect.name][:, effect.seen(STAIRCASE_STEPS).tolist().index(most)])
    assert np.ptp(np.log(smooth)) > 0.5
    assert found == pytest.approx(own["latency_ms"].median(), rel=0.05)


def test_a_term_is_a_logarithm_below_its_bend_and_linear_above() -> None:
    mapped = levels()
    at = mapped.names.index("bent_tau_R")
    points = np.repeat(mapped.from_logs(level_logs(1, seed=5)), 4, axis=0)
    points[:, at] = [-30.0, -29.0, 29.0, 30.0]
    term = np.exp(mapped.to_logs(points, np)[0]["tau_R"])
    assert term[1] / term[0] == pytest.approx(np.e, rel=1e-6)
    assert term[3] / term[2] == pytest.approx(30.0 / 29.0, rel=1e-6)
