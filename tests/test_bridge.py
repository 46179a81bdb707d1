"""Bridge sampling: masses that are known."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import multivariate_t

from bayes_sched.bridge import bridged, log_mass
from bayes_sched.mixture import Floats


@pytest.mark.parametrize("dim", [1, 10, 40])
def test_the_mass_of_a_long_tailed_density_is_found(dim: int) -> None:
    rng = np.random.default_rng(0)
    shape = np.cov(rng.normal(size=(2 * dim, 2 * dim)))[:dim, :dim].reshape(dim, dim)
    known = multivariate_t(np.arange(dim), shape, df=15)

    def log_density(points: Floats) -> Floats:
        found: Floats = np.asarray(known.logpdf(points)).reshape(len(points)) + 3.0
        return found

    draws = known.rvs(4000, random_state=rng).reshape(4000, dim)
    assert log_mass(log_density, draws, rng) == pytest.approx(3.0, abs=0.05)


def test_two_parts_of_a_density_get_their_shares() -> None:
    """A bimodal density in 20 dims, 0.3 and 0.7: importance sampling with few Gaussians has no chance."""
    rng = np.random.default_rng(1)
    shares, centres, dim = np.array([0.3, 0.7]), np.array([-4.0, 4.0]), 20

    def draws_of(part: int) -> Floats:
        points: Floats = rng.normal(size=(4000, dim)) * (0.5, 1.5)[part]
        points[:, 0] += centres[part]
        return points

    def log_density_of(part: int) -> Callable[[Floats], Floats]:
        width = (0.5, 1.5)[part]

        def log_density(points: Floats) -> Floats:
            centred = points.copy()
            centred[:, 0] -= centres[part]
            squares = (centred**2).sum(axis=1) / width**2
            found: Floats = np.log(float(shares[part])) - 0.5 * squares - dim * np.log(width) + 7.0
            return found

        return log_density

    masses = np.exp([log_mass(log_density_of(part), draws_of(part), rng) for part in (0, 1)])
    assert masses / masses.sum() == pytest.approx(shares, abs=0.01)


def test_a_density_that_is_the_gaussian_needs_no_iteration() -> None:
    assert bridged(np.full(10, 2.5), np.full(7, 2.5)) == pytest.approx(2.5)
