"""The density of a posterior in coordinates, its components and their masses, and what NUTS sees of them."""

import numpy as np
import pymc as pm
import pytest
from scipy.optimize import approx_fprime
from scipy.stats import norm

from bayes_sched.model.priors import Prior, Priors
from bayes_sched.sampling.components import Components, Density, component_model
from bayes_sched.sampling.coordinates import LogCoordinates
from bayes_sched.sampling.mixture import GaussianMixture
from tests.simulation import BENT_WEIGHT, two_mode_sampler, two_modes

# A rough approximation of the known target: wrong weights, too wide, the bend left out.
ROUGH = Components(
    GaussianMixture(
        np.array([0.2, 0.3, 0.5]),
        np.array([[-4.0, 0.3], [-4.5, 1.0], [4.0, 1.0]]),
        np.array([[[1.3, 0.0], [0.0, 2.0]], [[2.0, -0.5], [-0.5, 2.5]], [[0.3, 0.05], [0.05, 0.2]]]),
    )
)
NUMBERS = range(3)


@pytest.fixture(scope="module")
def density() -> Density:
    return two_mode_sampler().density


def test_the_density_is_that_of_the_logarithms_with_its_gradient(density: Density) -> None:
    points = np.random.default_rng(0).normal(0.0, 4.0, (10, 2))
    before = density.num_evaluations
    for point in points:
        value, gradient = density(point)
        assert value == pytest.approx(two_modes(point, np), rel=1e-10)
        assert gradient == pytest.approx(approx_fprime(point, two_modes, 1e-7, np), rel=1e-4, abs=1e-4)
    assert density.num_evaluations == before + 10
    assert density.values(points) == pytest.approx(two_modes(points, np), rel=1e-10)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
def test_a_point_without_a_density_is_impossible_and_no_error(density: Density, value: float) -> None:
    log_density, gradient = density(np.array([value, 0.0]))
    assert log_density == -1e300
    assert (gradient == 0.0).all()


def test_the_data_that_a_density_depends_on_are_named() -> None:
    """What the model holds but the density does not use must not be handed to what was compiled."""
    with pm.Model() as model:
        used, unused = pm.Data("used", 2.0), pm.Data("unused", 3.0)
        a = pm.LogNormal("a", 0.0, 1.0)
        pm.Normal("x", a * used, 1.0, observed=1.0)
        pm.Deterministic("b", a * unused)
    density = Density(model, LogCoordinates(Priors([Prior("a", 0.1, 10.0)])))
    assert density.data_names == {"used"}


def test_masses_are_those_of_the_target_not_of_the_approximation() -> None:
    size = 20_000
    points = ROUGH.mixture.sample(size, np.random.default_rng(3))
    log_density = two_modes(points, np)
    masses = ROUGH.masses(points, log_density + 123.0)  # posteriors are known up to a constant
    assert masses.sum() == pytest.approx(1.0, abs=1e-12)
    ratio = np.exp(log_density - ROUGH.mixture.logpdf(points))
    # Delta method: the error of a ratio of means with these weights.
    share = (points[:, 0] < 0).astype(float)
    error = np.sqrt(np.square(ratio * (share - BENT_WEIGHT)).mean() / size) / ratio.mean()
    assert error < 0.01
    assert masses[:2].sum() == pytest.approx(BENT_WEIGHT, abs=4 * error)  # those at negative log a


def test_nuts_sees_each_component_in_coordinates_that_make_it_nearly_normal(density: Density) -> None:
    """And with their masses they add up to the posterior, on points anywhere, whatever the mixture."""
    model = component_model(density, ROUGH)
    logp = model.compile_logp()
    rng = np.random.default_rng(4)
    points = ROUGH.mixture.sample(50, rng)
    parts = np.empty((len(NUMBERS), len(points)))
    for number in NUMBERS:
        for name, value in ROUGH.data(number).items():
            model[name].set_value(value)
        for z in rng.normal(0.0, 1.5, (10, 2)):
            x = ROUGH.to_coordinates(z, number)
            expected = norm.logpdf(z).sum() + two_modes(x, np) - ROUGH.mixture.logpdf(x[None])[0]
            assert float(logp({"z": z})) == pytest.approx(expected, rel=1e-9)
        factor = ROUGH.mixture.cholesky[number]
        z = np.linalg.solve(factor, (points - ROUGH.mixture.means[number]).T).T
        jacobian = -np.log(np.diag(factor)).sum() + np.log(ROUGH.mixture.weights[number])
        parts[number] = [float(logp({"z": row})) + jacobian for row in z]
    assert np.logaddexp.reduce(parts) == pytest.approx(two_modes(points, np), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("number", NUMBERS)
def test_draws_of_a_component_lie_around_it(number: int) -> None:
    z = np.random.default_rng(5).standard_normal((2, 4000, 2))
    points = ROUGH.to_coordinates(z, number)
    assert points.shape == z.shape
    flat, covariance = points.reshape(-1, 2), ROUGH.mixture.covariances[number]
    deviation = np.sqrt(np.diag(covariance))
    assert np.abs((flat.mean(axis=0) - ROUGH.mixture.means[number]) / deviation).max() < 4.5 / np.sqrt(8000)
    assert np.abs((np.cov(flat.T) - covariance) / np.outer(deviation, deviation)).max() < 0.08
