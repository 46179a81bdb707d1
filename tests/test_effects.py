"""Effects: levels, their log factors at steps, and coordinates that untie them from the equation."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytensor
import pytensor.tensor as pt
import pytest
import xarray as xr

from bayes_sched.model.equation import Parameter
from bayes_sched.model.likelihood import Effect, effects_of, with_effects
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import all_parameters, load_model
from bayes_sched.sampling.coordinates import with_positive_latencies
from bayes_sched.sampling.group_coordinates import EffectCoordinates
from tests.simulation import INTERPRETED
from tests.staircase import staircase_steps

MODEL = load_model("saturation_staircase")
PRIORS = Priors.from_parameters(all_parameters(MODEL, "regime"))
STEPS = staircase_steps(400, seed=1)
SPREAD = Parameter("s", "s", "spread", "1", 0.01, 0.3)


def effect(*upper: float, prefill: bool = True) -> Effect:
    return Effect("factor", "log factors", SPREAD, "total_tokens", upper, prefill)


def coordinates() -> EffectCoordinates:
    found = MODEL.coordinates(STEPS, PRIORS, noise="regime")
    assert isinstance(found, EffectCoordinates)
    return found


def prior_draw(rng: np.random.Generator, *, width: float = 1.0) -> dict[str, np.ndarray]:
    logs = {name: np.asarray(rng.normal(p.mu, width * p.sigma)) for name, p in PRIORS.items()}
    for one in effects_of(MODEL):
        logs[one.name] = one.draw(np.exp(logs[one.scale.name]), rng)[one.seen(STEPS)]
    return logs


def flat(logs: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate(
        [np.atleast_1d(logs[name]) for name in (*PRIORS, *(e.name for e in effects_of(MODEL)))]
    )


def test_a_level_holds_its_upper_end_and_the_last_is_open() -> None:
    levels = effect(16, 32, 64)
    assert levels.labels == ("1-16", "17-32", "33-64", ">64")
    assert levels.level([1, 16, 17, 64, 65, 10_000]).tolist() == [0, 0, 1, 2, 3, 3]


def test_levels_of_one_value_are_named_by_it() -> None:
    assert effect(1, 2, 4).labels == ("1", "2", "3-4", ">4")


def test_an_effect_acts_on_steps_with_prefill_or_on_the_others() -> None:
    steps = xr.Dataset({"total_tokens": ("step", [8.0, 300.0]), "num_prefill_reqs": ("step", [0.0, 1.0])})
    draws = xr.Dataset({"factor": (("draw", "factor_level"), [[0.1, 0.2], [0.3, 0.4]])})
    assert effect(16).at(draws, steps).transpose("draw", "step").to_numpy().tolist() == [
        [0.0, 0.2],
        [0.0, 0.4],
    ]
    decode = effect(16, prefill=False).at(draws, steps).transpose("draw", "step")
    assert decode.to_numpy().tolist() == [[0.1, 0.0], [0.3, 0.0]]


def test_levels_without_steps_are_not_seen() -> None:
    steps = pd.DataFrame({"total_tokens": [8, 300, 20], "num_prefill_reqs": [0, 1, 1]})
    assert effect(16, 32, 64).seen(steps).tolist() == [1, 3]


def test_drawn_factors_have_the_spread_of_their_population() -> None:
    scale = xr.Dataset({"s": ("draw", np.full(20_000, 0.2))})
    drawn = with_effects(scale, [effect(16, 32)], np.random.default_rng(0))["factor"]
    assert drawn.dims == ("draw", "factor_level")
    assert drawn.std("draw").to_numpy() == pytest.approx([0.2] * 3, rel=0.02)
    assert drawn["factor_level"].to_numpy().tolist() == ["1-16", "17-32", ">32"]


def test_the_spread_of_a_departure_that_fades_falls_as_one_over_the_column() -> None:
    fading = replace(effect(16, 256, 4096), fade=256.0)
    assert fading.relative_spread == pytest.approx([16 / 17, 1 / 2, 1 / 17, 1 / 17])
    scale = xr.Dataset({"s": ("draw", np.full(20_000, 0.2))})
    drawn = with_effects(scale, [fading], np.random.default_rng(0))["factor"]
    assert drawn.std("draw").to_numpy() == pytest.approx(0.2 * fading.relative_spread, rel=0.02)


def test_a_model_without_effects_has_none() -> None:
    assert effects_of(load_model("saturation")) == ()


def test_parameters_and_factors_survive_the_way_there_and_back() -> None:
    there_and_back = coordinates()
    rng = np.random.default_rng(0)
    for _ in range(50):
        logs = prior_draw(rng)
        point = there_and_back.from_logs(logs)
        assert point.shape == (len(there_and_back.names),)
        back, _ = there_and_back.to_logs(point, np)
        assert flat(back) == pytest.approx(flat(logs), abs=1e-6)


def test_the_log_jacobian_is_that_of_the_numerical_determinant() -> None:
    mapped = coordinates()
    rng = np.random.default_rng(1)
    for _ in range(5):
        point = mapped.from_logs(prior_draw(rng, width=0.5))
        _, expected = mapped.to_logs(point, np)
        scale = 1e-5 * np.maximum(1.0, np.abs(point))
        columns = [
            (flat(mapped.to_logs(point + row, np)[0]) - flat(mapped.to_logs(point - row, np)[0])) / (2 * h)
            for h, row in zip(scale, np.diag(scale), strict=True)
        ]
        assert np.linalg.slogdet(np.array(columns))[1] == pytest.approx(expected, abs=1e-4)


def test_pytensor_agrees_with_numpy_and_follows_adapted_data() -> None:
    mapped = coordinates()
    names = (*PRIORS, *(one.name for one in effects_of(MODEL)))
    point = pt.vector("point", shape=(len(mapped.names),))
    logs, log_jacobian = mapped.to_logs(point, pt)
    function = pytensor.function([point], [*(logs[name] for name in names), log_jacobian], mode=INTERPRETED)
    rng = np.random.default_rng(2)
    for steps in (STEPS, STEPS.assign(latency_ms=2.0 * STEPS["latency_ms"] + 1.0)):
        mapped.adapt(steps)
        row = mapped.from_logs(prior_draw(rng))
        expected, jacobian = mapped.to_logs(row, np)
        *found, found_jacobian = function(row)
        assert np.concatenate([np.atleast_1d(x) for x in found]) == pytest.approx(flat(expected), rel=1e-9)
        assert float(found_jacobian) == pytest.approx(float(jacobian), rel=1e-9)


def test_an_absurd_trace_with_negative_latencies_leaves_a_geometry_to_sample_in() -> None:
    mapped = coordinates()
    absurd = STEPS.assign(latency_ms=STEPS["latency_ms"].where(STEPS["num_prefill_reqs"] == 0, -5.0))
    with np.errstate(invalid="ignore"):
        mapped.adapt(absurd)
        assert np.isnan(mapped.from_logs(prior_draw(np.random.default_rng(4)))).any()
    mapped.adapt(with_positive_latencies(absurd))
    logs = prior_draw(np.random.default_rng(4))
    back, log_jacobian = mapped.to_logs(mapped.from_logs(logs), np)
    assert flat(back) == pytest.approx(flat(logs), abs=1e-6)
    assert np.isfinite(log_jacobian)


def test_at_the_coordinate_origin_a_level_with_many_steps_has_the_factor_its_steps_ask_for() -> None:
    mapped = coordinates()
    rng = np.random.default_rng(3)
    level = "prefill_factor[481-512]"
    where = mapped.names.index(level)
    one = next(e for e in effects_of(MODEL) if e.name == "prefill_factor")
    position = one.seen(STEPS).tolist().index(one.labels.index("481-512"))
    acted = STEPS[one.acts_on(STEPS) & (one.level(STEPS["total_tokens"]) == one.labels.index("481-512"))]
    num_compared = 0
    for _ in range(20):
        logs = prior_draw(rng, width=0.3)
        logs[one.scale.name] = np.log(1.0)  # a wide population leaves the level to its own steps
        point = mapped.from_logs(logs)
        point[where] = 0.0
        back, _ = mapped.to_logs(point, np)
        theta = {name: np.exp(value) for name, value in back.items() if name in PRIORS}
        smooth, rest = MODEL.split(theta, {c: acted[c].mean() for c in MODEL.columns})  # type: ignore[attr-defined]
        if rest < 0.5 * acted["latency_ms"].median():
            num_compared += 1
            expected = np.log((acted["latency_ms"].median() - rest) / smooth)
            assert back[one.name][position] == pytest.approx(expected, abs=0.02)
    assert num_compared >= 5
