"""What data identify: coordinates, their documented density, and the parameters that lead to them."""

from __future__ import annotations

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
import xarray as xr

from bayes_sched.errors import InputError
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import load_model
from bayes_sched.pooling.prior import (
    PopulationPrior,
    complete,
    documented_centre,
    identified,
    identified_names,
    log_documented,
    log_normal,
)
from tests.synthetic_fit import synthetic_metadata

PRIORS = synthetic_metadata().priors
NAMES = ("L_8", "c", "tau_B", "nu", "sigma_rel")
NUM_DRAWS = 20_000


@pytest.fixture(scope="module")
def logs() -> dict[str, np.ndarray]:
    return PRIORS.draw(NUM_DRAWS, np.random.default_rng(5))


def test_the_sums_are_what_the_equation_says(logs: dict[str, np.ndarray]) -> None:
    """The slope is the model's own combination; the floor, its latency less what requests and tokens add."""
    draws = xr.Dataset({name: ("draw", np.exp(values)) for name, values in logs.items()})
    model = load_model("saturation")
    step = xr.Dataset({"batch_size": 8.0, "total_tokens": 8.0})
    floor = model.latency(draws, step) - 8.0 * draws["tau_B"] - 8.0 * draws["tau_S"]
    found = np.exp(identified(logs, NAMES, np))
    np.testing.assert_allclose(found[:, 0], floor.to_numpy(), rtol=1e-6)
    np.testing.assert_allclose(found[:, 1], model.combinations(draws)["c"].to_numpy(), rtol=1e-12)
    assert identified_names(PRIORS) == ("L_8", "c", "tau_B", "nu", "sigma_rel", "sigma_floor")


@pytest.mark.parametrize(
    ("mean", "sd"),
    [((0.7, -5.0), (1.0, 1.0)), ((2.5, -2.5), (0.3, 0.5)), ((0.0, -6.0), (0.5, 0.3))],
)
def test_replacing_the_documented_density_keeps_the_prior_normalised(
    logs: dict[str, np.ndarray], mean: tuple[float, float], sd: tuple[float, float]
) -> None:
    """The mean of N / p_0 over documented draws is 1 for any N: so p_0 is their density."""
    z = identified(logs, ("L_8", "c"), np)
    ratio = np.exp(
        log_normal(z, np.array(mean), np.array(sd), np).sum(axis=-1)
        - log_documented(z, ("L_8", "c"), PRIORS, np)
    )
    error = ratio.std() / np.sqrt(NUM_DRAWS)
    assert ratio.mean() == pytest.approx(1.0, abs=4.0 * error + 0.02)
    assert error < 0.05  # or the test says nothing


def test_the_centre_is_that_of_documented_draws(logs: dict[str, np.ndarray]) -> None:
    mean, sd = documented_centre(NAMES, PRIORS)
    z = identified(logs, NAMES, np)
    np.testing.assert_allclose(z.mean(axis=0), mean, atol=0.05)
    np.testing.assert_allclose(z.std(axis=0), sd, rtol=0.03)


def test_completed_parameters_have_the_given_coordinates() -> None:
    """A slope of 10 ms a token leaves a floor of 0.5 ms only where nearly all of it is not saturated work."""
    rng = np.random.default_rng(1)
    near = rng.normal(documented_centre(NAMES, PRIORS)[0], 0.5, (200, len(NAMES)))
    far = np.log(np.tile([0.5, 10.0, 0.5, 3.0, 0.03], (1000, 1)))
    for z, atol in ((near, 1e-9), (far, 1e-6)):
        np.testing.assert_allclose(identified(complete(z, NAMES, PRIORS, rng), NAMES, np), z, atol=atol)


def test_completing_documented_coordinates_gives_documented_parameters_back(
    logs: dict[str, np.ndarray],
) -> None:
    kept = {name: values[:4000] for name, values in logs.items()}
    completed = complete(identified(kept, NAMES, np), NAMES, PRIORS, np.random.default_rng(2))
    for name, prior in PRIORS.items():
        z_score = (completed[name].mean() - prior.mu) / (prior.sigma / np.sqrt(4000))
        assert abs(z_score) < 5.0, name
        assert completed[name].std() == pytest.approx(prior.sigma, rel=0.08), name


@pytest.fixture
def population() -> PopulationPrior:
    rng = np.random.default_rng(4)
    mean = np.array([2.4, -2.5, -0.5, 1.0, -3.5]) + 0.1 * rng.standard_normal((50, 5))
    return PopulationPrior(names=NAMES, mean=mean, sd=np.full((50, 5), 0.3), text="a pool")


def test_drawn_servers_have_the_population_s_coordinates(population: PopulationPrior) -> None:
    """And a fifth of them those of the documented priors: moments of the mixture of both."""
    z = identified(population.draw(PRIORS, 8000, np.random.default_rng(0)), NAMES, np)
    centre, width = documented_centre(NAMES, PRIORS)
    mean = 0.8 * population.mean.mean(axis=0) + 0.2 * centre
    second = 0.8 * (population.mean**2 + population.sd**2).mean(axis=0) + 0.2 * (centre**2 + width**2)
    sd = np.sqrt(second - mean**2)
    assert (abs(z.mean(axis=0) - mean) < 0.03 + 5.0 * sd / np.sqrt(8000)).all()
    np.testing.assert_allclose(z.std(axis=0), sd, rtol=0.06)


def test_no_server_is_ruled_out_by_a_population_whose_density_is_the_same_in_pytensor(
    population: PopulationPrior, logs: dict[str, np.ndarray]
) -> None:
    assert population.log_ratio(logs, PRIORS, np).min() >= np.log(0.2) - 1e-12
    few = {name: values[:20] for name, values in logs.items()}
    symbols = {name: pt.vector(name) for name in few}
    graph = population.log_ratio(symbols, PRIORS, pt)
    evaluated = pytensor.function(
        list(symbols.values()), graph, mode="FAST_COMPILE", on_unused_input="ignore"
    )(*few.values())
    np.testing.assert_allclose(evaluated, population.log_ratio(few, PRIORS, np), rtol=1e-9)


def test_priors_within_a_population_of_the_same_model_draw_from_it(population: PopulationPrior) -> None:
    within = PRIORS.within(population)
    assert list(within) == list(PRIORS)
    assert within != PRIORS
    drawn = within.draw(2000, np.random.default_rng(0))
    assert np.median(drawn["nu"]) == pytest.approx(1.0, abs=0.15)
    assert within.override({"k_B": {"low": 0.1, "high": 0.2}}).population is population

    constant = Priors(prior for name, prior in PRIORS.items() if not name.startswith("sigma"))
    with pytest.raises(InputError, match="sigma_rel, which this model lacks"):
        constant.within(population)
