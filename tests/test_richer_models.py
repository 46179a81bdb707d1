"""The models that extend the documented one: their density, their predictions, what they reduce to."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.stats import lognorm, norm
from scipy.stats import t as student_t

from bayes_sched.model.likelihood import effects_of, with_effects
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import LatencyModel, all_parameters, load_model, shipped_models
from tests.simulation import INTERPRETED
from tests.staircase import staircase_steps

SATURATION, CONTEXT, KV_CACHE, STAIRCASE = (
    load_model(name)
    for name in ("saturation", "saturation_context", "saturation_kv_cache", "saturation_staircase")
)
STEPS = staircase_steps(12, seed=5).assign(kv_cache_usage=np.linspace(0.05, 0.9, 12))
HAS_PREFILL = STEPS["num_prefill_reqs"].to_numpy() > 0


@pytest.fixture(params=["saturation_context", "saturation_kv_cache", "saturation_staircase"])
def model(request: pytest.FixtureRequest) -> LatencyModel:
    return load_model(request.param)


def priors(model: LatencyModel) -> Priors:
    return Priors.from_parameters(all_parameters(model, model.noises[0]))


def prior_draws(model: LatencyModel, size: int, *, seed: int) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    draws = {name: ("draw", np.exp(rng.normal(p.mu, p.sigma, size))) for name, p in priors(model).items()}
    return with_effects(xr.Dataset(draws), effects_of(model), rng)


def dataset(steps: pd.DataFrame) -> xr.Dataset:
    return xr.Dataset({name: ("step", steps[name].to_numpy(float)) for name in steps})


def independent_moments(model: LatencyModel, draws: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale of `STEPS` for one draw, from the formulas of the docstrings."""
    value = {str(name): draws[name].to_numpy() for name in draws}
    tokens = STEPS["total_tokens"].to_numpy(float)
    tile = np.array([next((h for h in (16.0, 32.0, 64.0) if h >= s), 128.0) for s in tokens])
    padding = np.where(HAS_PREFILL, tile * np.ceil(tokens / tile) - tokens, 0.0) * value.get("phi", 0.0)
    equation = SATURATION.latency(draws, dataset(STEPS.assign(total_tokens=tokens + padding))).to_numpy()
    factor = np.zeros(len(STEPS))
    for effect in effects_of(model):
        level = [sum(x > top for top in effect.upper) for x in STEPS[effect.column]]
        factor += np.where(effect.prefill == HAS_PREFILL, value[effect.name][level], 0.0)
    if "tau_Q" in value:
        per_context = np.where(HAS_PREFILL, value["tau_M"], value["tau_C"])
        attention = per_context * STEPS["context_tokens"] + value["tau_Q"] * STEPS["prefill_pairs"]
    else:
        attention = np.where(HAS_PREFILL, value["tau_V"], value["tau_U"]) * STEPS["kv_cache_usage"]
    attention = attention + value["tau_P"] * HAS_PREFILL
    attention = attention + value.get("tau_R", 0.0) * HAS_PREFILL * STEPS["batch_size"]
    saturated = 1.0 - np.exp(-value["k_B"] * STEPS["batch_size"].to_numpy())
    slope = value["w_1"] / (value["P_max"] * saturated) + value["tau_S"]
    mean = equation + (np.exp(factor) - 1.0) * slope * (tokens + padding) + attention.to_numpy()
    relative = np.where(HAS_PREFILL, value["sigma_prefill"], value["sigma_rel"])
    floor = value["sigma_floor"]
    floor = np.where(HAS_PREFILL, value.get("sigma_prefill_floor", floor), floor)
    return mean, np.hypot(floor, relative * mean)


def test_every_shipped_model_keeps_the_documented_parameters_and_names_its_noise() -> None:
    for name in shipped_models():
        one = load_model(name)
        assert one.parameters[: len(SATURATION.parameters)] == SATURATION.parameters
        assert one.name == name
        for noise in one.noises:
            assert "nu" in {p.name for p in one.noise_parameters(noise)}


def test_mean_and_scale_are_those_of_the_documented_formulas(model: LatencyModel) -> None:
    draws = prior_draws(model, 20, seed=0)
    mean = model.latency(draws, dataset(STEPS))
    scale = model.scale(draws, mean, dataset(STEPS))
    for number in range(20):
        one = draws.isel(draw=number)
        expected = independent_moments(model, one)
        assert mean.isel(draw=number).to_numpy() == pytest.approx(expected[0], rel=1e-12)
        assert scale.isel(draw=number).to_numpy() == pytest.approx(expected[1], rel=1e-12)


def test_the_density_is_student_t_times_the_priors(model: LatencyModel) -> None:
    built = model.build(STEPS, priors(model), noise="regime")
    logp = built.compile_logp(mode=INTERPRETED)
    draws = prior_draws(model, 3, seed=1)
    for number in range(3):
        one = draws.isel(draw=number)
        mean, scale = independent_moments(model, one)
        expected = student_t(float(one["nu"]), loc=mean, scale=scale).logpdf(STEPS["latency_ms"]).sum()
        point = {}
        for name, prior in priors(model).items():
            value = float(one[name])
            expected += lognorm(s=prior.sigma, scale=np.exp(prior.mu)).logpdf(value) + np.log(value)
            point[f"{name}_log__"] = np.log(value)
        for effect in effects_of(model):
            own = one[effect.name].to_numpy()[effect.seen(STEPS)]
            upper = np.array((*effect.upper, effect.upper[-1]))[effect.seen(STEPS)]
            spread = float(one[effect.scale.name]) / (1.0 + upper / 256.0)
            expected += norm(scale=spread).logpdf(own).sum()
            point[effect.name] = own
        assert float(logp(point)) == pytest.approx(expected, rel=1e-9)


def test_without_departures_the_staircase_is_the_context_model() -> None:
    draws = prior_draws(STAIRCASE, 10, seed=2)
    draws = draws.assign(phi=0.0 * draws["phi"], tau_R=0.0 * draws["tau_R"])
    flat = draws.assign({effect.name: 0.0 * draws[effect.name] for effect in effects_of(STAIRCASE)})
    expected = CONTEXT.latency(draws, dataset(STEPS)).transpose("draw", "step").to_numpy()
    found = STAIRCASE.latency(flat, dataset(STEPS)).transpose("draw", "step").to_numpy()
    assert found == pytest.approx(expected, rel=1e-12)


def test_without_context_the_context_model_is_the_equation_and_a_fixed_cost_of_prefill() -> None:
    empty = dataset(STEPS).assign(context_tokens=("step", np.zeros(12)), prefill_pairs=("step", np.zeros(12)))
    draws = prior_draws(CONTEXT, 10, seed=3)
    expected = SATURATION.latency(draws, empty) + draws["tau_P"] * (empty["num_prefill_reqs"] > 0)
    found = CONTEXT.latency(draws, empty).transpose("draw", "step").to_numpy()
    assert found == pytest.approx(expected.transpose("draw", "step").to_numpy(), rel=1e-12)


def test_a_share_of_the_cache_in_use_costs_what_its_tokens_cost() -> None:
    draws = prior_draws(KV_CACHE, 10, seed=4)
    capacity = 300_000.0
    tokens = draws.assign(tau_C=draws["tau_U"] / capacity, tau_M=draws["tau_V"] / capacity, tau_Q=0.0)
    steps = STEPS.assign(context_tokens=capacity * STEPS["kv_cache_usage"])
    expected = CONTEXT.latency(tokens, dataset(steps)).transpose("draw", "step").to_numpy()
    found = KV_CACHE.latency(draws, dataset(steps)).transpose("draw", "step").to_numpy()
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("noise", ["proportional", "constant"])
def test_the_noise_options_of_the_documented_model_remain(model: LatencyModel, noise: str) -> None:
    names = {p.name for p in model.noise_parameters(noise)}
    assert names == {p.name for p in SATURATION.noise_parameters(noise)}
    draws = xr.Dataset({name: ("draw", [0.5, 2.0]) for name in names})
    mean = xr.DataArray([10.0, 100.0], dims="step")
    expected = SATURATION.scale(draws, mean, dataset(STEPS))
    assert model.scale(draws, mean, dataset(STEPS)).equals(expected)


def test_levels_cover_every_size_a_step_may_have() -> None:
    for effect in effects_of(STAIRCASE):
        assert list(effect.upper) == sorted(set(effect.upper))
        assert len(effect.labels) == effect.num_levels == len(set(effect.labels))
        assert effect.level([1, 1e6]).tolist() == [0, effect.num_levels - 1]
