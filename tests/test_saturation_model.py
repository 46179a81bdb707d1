"""The shipped model: its variables, its priors, its density, its predictions."""

import numpy as np
import pandas as pd
import pymc as pm
import pytest
import xarray as xr
from scipy.stats import lognorm, norm
from scipy.stats import t as student_t

from bayes_sched.arrays import Floats
from bayes_sched.model.equation import PARAMETERS
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import all_parameters, load_model
from tests.simulation import INTERPRETED
from tests.synthetic_fit import TRUTH

MODEL = load_model("saturation")
DOCUMENTED = {
    "P_max": (1.0, 1000.0),
    "k_B": (0.01, 1.0),
    "k_S": (0.001, 0.1),
    "w_0": (0.1, 100.0),
    "w_1": (0.001, 1.0),
    "tau_0": (0.05, 50.0),
    "tau_B": (0.005, 5.0),
    "tau_S": (0.0001, 0.1),
}
NOISE = {"proportional": ["nu", "sigma_rel", "sigma_floor"], "constant": ["nu", "sigma"]}
STEPS = pd.DataFrame(
    {
        "batch_size": [8, 1, 8, 3, 1, 8],
        "total_tokens": [8, 1, 8, 700, 4096, 512],
        "latency_ms": [9.0, 6.5, 9.4, 25.0, 60.0, 21.0],
    }
)


def priors(noise: str) -> Priors:
    return Priors.from_parameters(all_parameters(MODEL, noise))


def independent_scale(values: dict[str, float], mean: Floats) -> Floats:
    if "sigma" in values:
        return np.full_like(mean, values["sigma"])
    return np.hypot(values["sigma_floor"], values["sigma_rel"] * mean)


def independent_mean(values: dict[str, float], steps: pd.DataFrame) -> Floats:
    batch_size, tokens = steps["batch_size"].to_numpy(float), steps["total_tokens"].to_numpy(float)
    saturation = (1 - np.exp(-values["k_B"] * batch_size)) * (1 - np.exp(-values["k_S"] * tokens))
    work = (values["w_0"] + values["w_1"] * tokens) / (values["P_max"] * saturation)
    mean: Floats = values["tau_0"] + work + values["tau_B"] * batch_size + values["tau_S"] * tokens
    return mean


@pytest.fixture(scope="module", params=list(NOISE))
def noise(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(noise: str) -> pm.Model:
    return MODEL.build(STEPS, priors(noise), noise=noise)


def test_the_default_noise_grows_with_the_latency() -> None:
    assert MODEL.noises == ("proportional", "constant")


def test_the_free_variables_are_named_exactly_as_documented(model: pm.Model, noise: str) -> None:
    assert [variable.name for variable in model.free_RVs] == [*DOCUMENTED, *NOISE[noise]]
    assert [variable.name for variable in model.observed_RVs] == ["latency_ms"]


@pytest.mark.parametrize("name", list(DOCUMENTED))
def test_each_prior_is_the_documented_log_normal(model: pm.Model, name: str) -> None:
    low, high = DOCUMENTED[name]
    *_, mu, sigma = model[name].owner.inputs
    assert float(mu.eval(mode=INTERPRETED)) == pytest.approx(np.log(low * high) / 2, abs=1e-12)
    assert float(sigma.eval(mode=INTERPRETED)) == pytest.approx(
        np.log(high / low) / 2 / norm.ppf(0.975), abs=1e-12
    )


def test_the_density_is_student_t_times_log_normals(model: pm.Model, noise: str) -> None:
    logp = model.compile_logp(mode=INTERPRETED)
    rng = np.random.default_rng(1)
    table = priors(noise)
    for _ in range(5):
        logs = {name: rng.normal(prior.mu, prior.sigma) for name, prior in table.items()}
        values = {name: float(np.exp(value)) for name, value in logs.items()}
        mean = independent_mean(values, STEPS)
        scale = independent_scale(values, mean)
        expected = student_t(values["nu"], loc=mean, scale=scale).logpdf(STEPS["latency_ms"]).sum()
        for name, prior in table.items():
            low, high = prior.low, prior.high
            width = np.log(high / low) / 2 / norm.ppf(0.975)
            # PyMC's density is that of the logarithm, its value variable: the density times the value.
            expected += lognorm(s=width, scale=np.sqrt(low * high)).logpdf(values[name]) + logs[name]
        assert float(logp({f"{name}_log__": value for name, value in logs.items()})) == pytest.approx(
            expected, rel=1e-9
        )


def test_the_mean_and_scale_of_draws_are_those_of_the_model(noise: str) -> None:
    values = TRUTH | {"sigma": 1.5}
    names = [*DOCUMENTED, *NOISE[noise]]
    draws = xr.Dataset({name: ("draw", [values[name], 1.5 * values[name]]) for name in names})
    steps = xr.Dataset({name: ("step", STEPS[name]) for name in MODEL.columns})
    mean = MODEL.latency(draws, steps)
    assert mean.sizes == {"draw": 2, "step": 6}
    for draw, factor in enumerate([1.0, 1.5]):
        one = {name: factor * values[name] for name in names}
        expected = independent_mean(one, STEPS)
        assert mean.isel(draw=draw).to_numpy() == pytest.approx(expected, rel=1e-12)
        scale = MODEL.scale(draws, mean, steps).isel(draw=draw)
        broadcast = np.broadcast_to(scale.to_numpy(), expected.shape)
        assert broadcast == pytest.approx(independent_scale(one, expected), rel=1e-12)


def test_the_identified_combinations_are_the_documented_ones() -> None:
    table = MODEL.combinations(xr.Dataset(TRUTH))
    a_1 = TRUTH["w_1"] / TRUTH["P_max"]
    assert {str(name): float(value) for name, value in table.items()} == pytest.approx(
        {
            "a_0": TRUTH["w_0"] / TRUTH["P_max"],
            "a_1": a_1,
            "c": a_1 + TRUTH["tau_S"],
            "L_0": TRUTH["tau_0"] + a_1 / TRUTH["k_S"],
        }
    )
    assert all(value.attrs["meaning"] and value.attrs["unit"] for value in table.values())
    # What the names promise: the slope for large steps, and the floor for small ones without the fixed work.
    draws = xr.Dataset(TRUTH | {"w_0": 0.0, "tau_B": 0.0, "k_B": 100.0})
    steps = xr.Dataset({"batch_size": 1.0, "total_tokens": ("step", [1e-6, 1e5, 2e5])})
    small, big, twice = MODEL.latency(draws, steps).to_numpy()
    assert small == pytest.approx(float(table["L_0"]), rel=1e-6)
    assert (twice - big) / 1e5 == pytest.approx(float(table["c"]), rel=1e-9)


def test_typical_steps_have_plausible_latencies_a_priori(noise: str) -> None:
    """Decode steps and a prefill step."""
    steps = pd.DataFrame(
        {"batch_size": [16, 64, 8], "total_tokens": [16, 64, 2048], "latency_ms": [1.0, 1.0, 1.0]}
    )
    model = MODEL.build(steps, priors(noise), noise=noise)
    prior = pm.sample_prior_predictive(2000, model=model, random_seed=3, compile_kwargs={"mode": INTERPRETED})
    mean = MODEL.latency(
        prior["prior"].to_dataset(), xr.Dataset({name: ("step", steps[name]) for name in MODEL.columns})
    )
    median = mean.median(("chain", "draw"))
    assert (median > 1.0).all(), median
    assert (median < 300.0).all(), median
    # Most of the prior lies where the cleaning's default limits (1 - 300 ms) say that steps are.
    inside = ((mean > 1.0) & (mean < 300.0)).mean(("chain", "draw"))
    assert (inside > 0.75).all(), inside
    drawn = prior["prior_predictive"]["latency_ms"]
    assert np.isfinite(drawn).all()
    assert float((drawn > 0).mean()) > 0.9


def test_the_observed_cells_are_evaluated_once_each(model: pm.Model) -> None:
    assert (
        len(model["batch_size"].get_value()) == STEPS.drop_duplicates(["batch_size", "total_tokens"]).shape[0]
    )
    cell = model["cell_of_step"].get_value()
    np.testing.assert_array_equal(model["batch_size"].get_value()[cell], STEPS["batch_size"])
    np.testing.assert_array_equal(model["total_tokens"].get_value()[cell], STEPS["total_tokens"])


def test_the_documented_parameters_are_those_of_the_equation() -> None:
    assert MODEL.parameters == PARAMETERS
    assert MODEL.columns == ("batch_size", "total_tokens")
