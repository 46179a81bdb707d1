"""The log density of a model in given coordinates."""

import numpy as np
import pymc as pm
import pytest
from scipy.optimize import approx_fprime

from bayes_sched.model.priors import Prior, Priors
from bayes_sched.sampling.components import Density
from bayes_sched.sampling.coordinates import LogCoordinates
from tests.simulation import two_mode_sampler, two_modes


@pytest.fixture(scope="module")
def density() -> Density:
    return two_mode_sampler().density


def test_the_density_is_that_of_the_logarithms_with_its_gradient(density: Density) -> None:
    points = np.random.default_rng(0).normal(0.0, 4.0, (10, 2))
    before = density.num_evaluations
    for point in points:
        value, gradient = density(point)
        assert value == pytest.approx(two_modes(point, np), rel=1e-10)
        numeric = approx_fprime(point, two_modes, 1e-7, np)
        assert gradient == pytest.approx(numeric, rel=1e-4, abs=1e-4)
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
