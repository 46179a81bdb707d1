"""The parts of a posterior, their masses, and the density that NUTS sees."""

import numpy as np
import pytest
from scipy.stats import norm

from bayes_sched.arrays import Floats
from bayes_sched.sampling.components import Density, Partition, part_model
from bayes_sched.sampling.mixture import GaussianMixture
from tests.simulation import BENT_WEIGHT, two_mode_sampler, two_modes

# A rough approximation of the known target: wrong weights, too wide, the bend left out.
ROUGH = Partition(
    GaussianMixture(
        np.array([0.2, 0.3, 0.5]),
        np.array([[-4.0, 0.3], [-4.5, 1.0], [4.0, 1.0]]),
        np.array([[[1.3, 0.0], [0.0, 2.0]], [[2.0, -0.5], [-0.5, 2.5]], [[0.3, 0.05], [0.05, 0.2]]]),
    )
)


@pytest.fixture(scope="module")
def density() -> Density:
    return two_mode_sampler().density


def random_points(size: int, seed: int) -> Floats:
    return ROUGH.mixture.sample(size, np.random.default_rng(seed))


def test_masses_are_those_of_the_target_not_of_the_approximation() -> None:
    size = 20_000
    points = random_points(size, 3)
    log_density = two_modes(points, np) + 123.0  # posteriors are known up to a constant
    masses = ROUGH.masses(points, log_density)
    assert masses.sum() == pytest.approx(1.0, abs=1e-12)
    ratio = np.exp(log_density - 123.0 - ROUGH.mixture.logpdf(points))
    bent = masses[:2].sum()  # the two components at negative log a
    # Delta method: the error of a ratio of means with these weights.
    share = (points[:, 0] < 0).astype(float)
    error = np.sqrt(np.square(ratio * (share - BENT_WEIGHT)).mean() / size) / ratio.mean()
    assert error < 0.01
    assert bent == pytest.approx(BENT_WEIGHT, abs=4 * error)


def test_nuts_sees_the_density_of_each_part_in_coordinates_that_make_it_nearly_normal(
    density: Density,
) -> None:
    model = part_model(density, ROUGH)
    logp = model.compile_logp()
    rng = np.random.default_rng(4)
    for part in range(ROUGH.mixture.num_components):
        for name, value in ROUGH.data(part).items():
            model[name].set_value(value)
        for z in rng.normal(0.0, 1.5, (10, 2)):
            x = ROUGH.to_coordinates(z, part)
            expected = norm.logpdf(z).sum() + two_modes(x, np) - ROUGH.mixture.logpdf(x[None])[0]
            assert float(logp({"z": z})) == pytest.approx(expected, rel=1e-9)


def test_the_parts_with_their_masses_add_up_to_the_posterior(density: Density) -> None:
    """In the model's coordinates, with the change of variables: on points anywhere, whatever the mixture."""
    model = part_model(density, ROUGH)
    logp = model.compile_logp()
    points = random_points(50, 2)
    parts = np.empty((ROUGH.mixture.num_components, len(points)))
    for part in range(ROUGH.mixture.num_components):
        for name, value in ROUGH.data(part).items():
            model[name].set_value(value)
        factor = ROUGH.mixture.cholesky[part]
        z = np.linalg.solve(factor, (points - ROUGH.mixture.means[part]).T).T
        jacobian = -np.log(np.diag(factor)).sum() + np.log(ROUGH.mixture.weights[part])
        parts[part] = [float(logp({"z": row})) + jacobian for row in z]
    assert np.logaddexp.reduce(parts) == pytest.approx(two_modes(points, np), rel=1e-9, abs=1e-9)


def test_draws_of_a_part_lie_around_its_component() -> None:
    z = np.random.default_rng(5).standard_normal((2, 4000, 2))
    for part in range(ROUGH.mixture.num_components):
        points = ROUGH.to_coordinates(z, part)
        assert points.shape == z.shape
        flat = points.reshape(-1, 2)
        deviation = np.sqrt(np.diag(ROUGH.mixture.covariances[part]))
        assert np.abs((flat.mean(axis=0) - ROUGH.mixture.means[part]) / deviation).max() < 4.5 / np.sqrt(8000)
        scale = np.outer(deviation, deviation)
        assert np.abs((np.cov(flat.T) - ROUGH.mixture.covariances[part]) / scale).max() < 0.08
