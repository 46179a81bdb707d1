"""The shipped models: variables, priors, density and predictions by their documented formulas."""

import numpy as np
import pandas as pd
import pymc as pm
import pytest
import xarray as xr
from scipy.stats import lognorm, norm
from scipy.stats import t as student_t

from bayes_sched.arrays import Floats
from bayes_sched.model.equation import PARAMETERS
from bayes_sched.model.likelihood import effects_of, with_effects
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import LatencyModel, all_parameters, load_model, shipped_models
from tests.simulation import INTERPRETED
from tests.staircase import staircase_steps
from tests.synthetic_fit import TRUTH

MODELS = {name: load_model(name) for name in shipped_models()}
SATURATION, CONTEXT = MODELS["saturation"], MODELS["saturation_context"]
KV_CACHE, STAIRCASE = MODELS["saturation_kv_cache"], MODELS["saturation_staircase"]
NOISE = {"proportional": ["nu", "sigma_rel", "sigma_floor"], "constant": ["nu", "sigma"]}
STEPS = staircase_steps(12, seed=5).assign(kv_cache_usage=np.linspace(0.05, 0.9, 12))
STEPS.loc[11, list(SATURATION.columns)] = STEPS.loc[10, list(SATURATION.columns)]  # traces repeat themselves
HAS_PREFILL = STEPS["num_prefill_reqs"].to_numpy() > 0
VARIANTS = [("saturation", "proportional"), ("saturation", "constant")]
VARIANTS += [(name, model.noises[0]) for name, model in MODELS.items() if name != "saturation"]


@pytest.fixture(scope="module", params=VARIANTS, ids=" ".join)
def variant(request: pytest.FixtureRequest) -> tuple[LatencyModel, str, pm.Model]:
    name, noise = request.param
    model = MODELS[name]
    return model, noise, model.build(STEPS, priors(model, noise), noise=noise)


def priors(model: LatencyModel, noise: str) -> Priors:
    return Priors.from_parameters(all_parameters(model, noise))


def prior_draws(model: LatencyModel, noise: str, size: int) -> xr.Dataset:
    rng = np.random.default_rng(0)
    logs = priors(model, noise).draw(size, rng)
    draws = xr.Dataset({name: ("draw", np.exp(values)) for name, values in logs.items()})
    return with_effects(draws, effects_of(model), rng)


def dataset(steps: pd.DataFrame) -> xr.Dataset:
    return xr.Dataset({name: ("step", steps[name].to_numpy(float)) for name in steps})


def mean_of(model: LatencyModel, draws: xr.Dataset, steps: pd.DataFrame = STEPS) -> Floats:
    return model.latency(draws, dataset(steps)).transpose("draw", "step").to_numpy()


def independent_moments(model: LatencyModel, draws: xr.Dataset) -> tuple[Floats, Floats]:
    """Mean and scale of `STEPS` for one draw, from the formulas of the docstrings."""
    value = {str(name): draws[name].to_numpy() for name in draws}
    batch_size, tokens = (STEPS[name].to_numpy(float) for name in SATURATION.columns)
    is_told = "num_prefill_reqs" in model.columns or model is SATURATION
    has_prefill = HAS_PREFILL if is_told else tokens > batch_size
    tile = np.array([next((h for h in (16.0, 32.0, 64.0) if h >= s), 128.0) for s in tokens])
    padding = np.where(has_prefill, tile * np.ceil(tokens / tile) - tokens, 0.0) * value.get("phi", 0.0)
    padded = tokens + padding
    by_requests = 1.0 - np.exp(-value["k_B"] * batch_size)
    work = (value["w_0"] + value["w_1"] * padded) / value["P_max"]
    mean = value["tau_0"] + work / (by_requests * (1.0 - np.exp(-value["k_S"] * padded)))
    mean = mean + value["tau_B"] * batch_size + value["tau_S"] * padded
    factor, noise = np.zeros(len(STEPS)), np.zeros(len(STEPS))
    for effect in effects_of(model):
        level = [sum(x > top for top in effect.upper) for x in STEPS[effect.column]]
        added = np.where(effect.prefill == has_prefill, value[effect.name][level], 0.0)
        factor, noise = (factor, noise + added) if effect.noise else (factor + added, noise)
    slope = value["w_1"] / (value["P_max"] * by_requests) + value["tau_S"]
    is_whole = "sigma_decode" in value  # whether factors multiply all of the latency
    mean = mean + (0.0 if is_whole else np.exp(factor) - 1.0) * slope * padded
    if "tau_Q" in value:
        per_context = np.where(has_prefill, value["tau_M"], value["tau_C"])
        mean = mean + per_context * STEPS["context_tokens"].to_numpy()
        mean = mean + value["tau_Q"] * STEPS["prefill_pairs"].to_numpy()
    elif "tau_V" in value:
        mean = (
            mean + np.where(has_prefill, value["tau_V"], value["tau_U"]) * STEPS["kv_cache_usage"].to_numpy()
        )
    mean = mean + (value.get("tau_P", 0.0) + value.get("tau_R", 0.0) * batch_size) * has_prefill
    if is_whole:
        mean = mean * np.exp(factor)
        relative = np.where(has_prefill, value["sigma_prefill"], value["sigma_decode"])
        return mean, mean * relative * np.exp(noise)
    if "sigma" in value:
        return mean, np.full(len(mean), float(value["sigma"]))
    relative = np.where(has_prefill, value.get("sigma_prefill", value["sigma_rel"]), value["sigma_rel"])
    floor = np.where(
        has_prefill, value.get("sigma_prefill_floor", value["sigma_floor"]), value["sigma_floor"]
    )
    return mean, np.hypot(floor, relative * mean)


def test_every_shipped_model_keeps_the_documented_parameters_and_names_its_noise() -> None:
    for name, model in MODELS.items():
        assert model.name == name
        assert model.parameters[: len(PARAMETERS)] == PARAMETERS
        assert all("nu" in {p.name for p in model.noise_parameters(noise)} for noise in model.noises)
    assert (SATURATION.parameters, SATURATION.columns) == (PARAMETERS, ("batch_size", "total_tokens"))
    assert SATURATION.noises == ("proportional", "constant")  # the default grows with the latency


def test_the_variables_are_named_as_documented(variant: tuple[LatencyModel, str, pm.Model]) -> None:
    model, noise, built = variant
    effects = [effect.name for effect in effects_of(model)]
    names = [p.name for p in all_parameters(model, noise)]
    assert [variable.name for variable in built.free_RVs] == [*names, *effects]
    assert [variable.name for variable in built.observed_RVs] == ["latency_ms"]
    if model is SATURATION:
        assert names == [*(p.name for p in PARAMETERS), *NOISE[noise]]


def test_each_cell_is_evaluated_once_where_that_spares_half_of_them(
    variant: tuple[LatencyModel, str, pm.Model],
) -> None:
    model, noise, built = variant
    repeated = pd.concat([STEPS] * 2, ignore_index=True)
    by_cell = model.build(repeated, priors(model, noise), noise=noise)
    assert "cell_of_step" not in built.named_vars
    assert by_cell["batch_size"].get_value().size == len(STEPS[list(model.columns)].drop_duplicates())
    for name in model.columns:
        found = by_cell[name].get_value()[by_cell["cell_of_step"].get_value()]
        np.testing.assert_array_equal(built[name].get_value(), STEPS[name])
        np.testing.assert_array_equal(found, repeated[name])


def test_each_prior_is_log_normal_with_the_documented_range(
    variant: tuple[LatencyModel, str, pm.Model],
) -> None:
    model, noise, built = variant
    for parameter in all_parameters(model, noise):
        low = parameter.low or 1e-3 * parameter.high
        *_, mu, sigma = (x.data for x in built[parameter.name].owner.inputs[-2:])
        assert mu == pytest.approx(np.log(low * parameter.high) / 2, abs=1e-12)
        assert sigma == pytest.approx(np.log(parameter.high / low) / 2 / norm.ppf(0.975), abs=1e-12)


def test_mean_and_scale_are_those_of_the_documented_formulas(
    variant: tuple[LatencyModel, str, pm.Model],
) -> None:
    model, noise, _ = variant
    draws = prior_draws(model, noise, 20)
    mean = model.latency(draws, dataset(STEPS))
    scale = model.scale(draws, mean, dataset(STEPS)).broadcast_like(mean)
    assert mean.sizes == {"draw": 20, "step": 12}
    for number in range(20):
        expected = independent_moments(model, draws.isel(draw=number))
        assert mean.isel(draw=number).to_numpy() == pytest.approx(expected[0], rel=1e-12)
        assert scale.isel(draw=number).to_numpy() == pytest.approx(expected[1], rel=1e-12)


def test_the_density_is_student_t_times_the_priors(variant: tuple[LatencyModel, str, pm.Model]) -> None:
    model, noise, built = variant
    logp = built.compile_logp(mode=INTERPRETED)
    draws = prior_draws(model, noise, 3)
    for number in range(3):
        one = draws.isel(draw=number)
        mean, scale = independent_moments(model, one)
        expected = student_t(float(one["nu"]), loc=mean, scale=scale).logpdf(STEPS["latency_ms"]).sum()
        point = {}
        for name, prior in priors(model, noise).items():
            value = float(one[name])
            # PyMC's density is that of the logarithm, its value variable: the density times the value.
            expected += lognorm(s=prior.sigma, scale=np.exp(prior.mu)).logpdf(value) + np.log(value)
            point[f"{name}_log__"] = np.log(value)
        for effect in effects_of(model):
            own = one[effect.name].to_numpy()[effect.seen(STEPS)]
            upper = np.array((*effect.upper, effect.upper[-1]))[effect.seen(STEPS)]
            fading = 1.0 + (upper / 256.0 if model is STAIRCASE else 0.0)
            expected += norm(scale=float(one[effect.scale.name]) / fading).logpdf(own).sum()
            point[effect.name] = own
        assert float(logp(point)) == pytest.approx(expected, rel=1e-9)


def test_the_identified_combinations_are_the_documented_ones() -> None:
    table = SATURATION.combinations(xr.Dataset(TRUTH))
    a_1 = TRUTH["w_1"] / TRUTH["P_max"]
    expected = {"a_0": TRUTH["w_0"] / TRUTH["P_max"], "a_1": a_1, "c": a_1 + TRUTH["tau_S"]}
    expected["L_0"] = TRUTH["tau_0"] + a_1 / TRUTH["k_S"]
    assert {str(name): float(value) for name, value in table.items()} == pytest.approx(expected)
    assert all(value.attrs["meaning"] and value.attrs["unit"] for value in table.values())
    # What the names promise: the slope for large steps, and the floor for small ones without the fixed work.
    draws = xr.Dataset(TRUTH | {"w_0": 0.0, "tau_B": 0.0, "k_B": 100.0})
    steps = xr.Dataset({"batch_size": 1.0, "total_tokens": ("step", [1e-6, 1e5, 2e5])})
    small, big, twice = SATURATION.latency(draws, steps).to_numpy()
    assert small == pytest.approx(float(table["L_0"]), rel=1e-6)
    assert (twice - big) / 1e5 == pytest.approx(float(table["c"]), rel=1e-9)


@pytest.mark.parametrize("noise", NOISE)
def test_typical_steps_have_plausible_latencies_a_priori(noise: str) -> None:
    """Decode steps and a prefill step."""
    steps = pd.DataFrame(
        {"batch_size": [16, 64, 8], "total_tokens": [16, 64, 2048], "latency_ms": [1.0, 1.0, 1.0]}
    )
    mean = mean_of(SATURATION, prior_draws(SATURATION, noise, 2000), steps[list(SATURATION.columns)])
    median = np.median(mean, axis=0)
    assert ((median > 1.0) & (median < 300.0)).all(), median
    # Most of the prior lies where the cleaning's default limits (1 - 300 ms) say that steps are.
    inside = ((mean > 1.0) & (mean < 300.0)).mean(axis=0)
    assert (inside > 0.75).all(), inside
    model = SATURATION.build(steps, priors(SATURATION, noise), noise=noise)
    prior = pm.sample_prior_predictive(500, model=model, random_seed=3, compile_kwargs={"mode": INTERPRETED})
    drawn = prior["prior_predictive"]["latency_ms"]
    assert np.isfinite(drawn).all()
    assert float((drawn > 0).mean()) > 0.9


def test_without_departures_the_staircase_is_the_context_model() -> None:
    draws = prior_draws(STAIRCASE, "regime", 10)
    flat = {effect.name: 0.0 * draws[effect.name] for effect in effects_of(STAIRCASE)}
    flat |= {name: 0.0 * draws[name] for name in ("phi", "tau_R")}
    assert mean_of(STAIRCASE, draws.assign(flat)) == pytest.approx(mean_of(CONTEXT, draws), rel=1e-12)


def test_without_departures_factors_by_level_leave_the_model_they_multiply() -> None:
    for name, smooth in {"context": STAIRCASE, "kv_cache": KV_CACHE}.items():
        model = MODELS[f"saturation_levels_{name}"]
        draws = prior_draws(model, "levels", 10)
        flat = {effect.name: 0.0 * draws[effect.name] for effect in effects_of(model)}
        flat |= {
            "prefill_factor": 0.0 * draws["prefill_factor"],
            "tau_R": draws["tau_R"] * (name == "context"),
        }
        found = mean_of(model, draws.assign(flat))
        assert found == pytest.approx(mean_of(smooth, draws.assign(flat)), rel=1e-12)


def test_a_model_of_sizes_alone_takes_steps_with_more_tokens_than_requests_for_prefill() -> None:
    model = MODELS["saturation_levels"]
    draws = prior_draws(model, "levels", 10)
    table = pd.DataFrame({"batch_size": [8, 8], "total_tokens": [8, 9], "num_prefill_reqs": [1, 0]})
    assert [effect.acts_on(table).tolist() for effect in effects_of(model)] == [
        [effect.prefill == (tokens > 8) for tokens in (8, 9)] for effect in effects_of(model)
    ]
    later = draws.assign(tau_P=draws["tau_P"] + 1.0)
    changed = mean_of(model, later, table) - mean_of(model, draws, table)
    assert (changed[:, 0] == 0.0).all()
    assert (changed[:, 1] > 0.0).all()


def test_without_context_the_context_model_is_the_equation_and_a_fixed_cost_of_prefill() -> None:
    empty = STEPS.assign(context_tokens=0.0, prefill_pairs=0.0)
    draws = prior_draws(CONTEXT, "regime", 10)
    expected = mean_of(SATURATION, draws, empty) + draws["tau_P"].to_numpy()[:, None] * HAS_PREFILL
    assert mean_of(CONTEXT, draws, empty) == pytest.approx(expected, rel=1e-12)


def test_a_share_of_the_cache_in_use_costs_what_its_tokens_cost() -> None:
    draws = prior_draws(KV_CACHE, "regime", 10)
    capacity = 300_000.0
    tokens = draws.assign(tau_C=draws["tau_U"] / capacity, tau_M=draws["tau_V"] / capacity, tau_Q=0.0)
    steps = STEPS.assign(context_tokens=capacity * STEPS["kv_cache_usage"])
    assert mean_of(KV_CACHE, draws) == pytest.approx(mean_of(CONTEXT, tokens, steps), rel=1e-12)


@pytest.mark.parametrize("noise", NOISE)
def test_the_noise_options_of_the_documented_model_remain(noise: str) -> None:
    names = {p.name for p in SATURATION.noise_parameters(noise)}
    draws = xr.Dataset({name: ("draw", [0.5, 2.0]) for name in names})
    mean = xr.DataArray([10.0, 100.0], dims="step")
    expected = SATURATION.scale(draws, mean, dataset(STEPS))
    for model in (CONTEXT, KV_CACHE, STAIRCASE):
        assert {p.name for p in model.noise_parameters(noise)} == names
        assert model.scale(draws, mean, dataset(STEPS)).equals(expected)


def test_levels_cover_every_size_a_step_may_have() -> None:
    for effect in (effect for model in MODELS.values() for effect in effects_of(model)):
        assert list(effect.upper) == sorted(set(effect.upper))
        assert len(effect.labels) == effect.num_levels == len(set(effect.labels))
        assert effect.level([1, 1e6]).tolist() == [0, effect.num_levels - 1]
