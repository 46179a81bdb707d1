"""Bridge sampling: masses that are known."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal, multivariate_t

from bayes_sched.arrays import Floats
from bayes_sched.sampling.bridge import log_masses


def normal_log_density(points: Floats, centre: Floats, width: float) -> Floats:
    found: Floats = np.asarray(multivariate_normal(centre, width**2 * np.eye(len(centre))).logpdf(points))
    return found


@pytest.mark.parametrize("dim", [1, 10, 40])
def test_the_mass_of_a_long_tailed_density_is_found(dim: int) -> None:
    rng = np.random.default_rng(0)
    shape = np.cov(rng.normal(size=(2 * dim, 2 * dim)))[:dim, :dim].reshape(dim, dim)
    known = multivariate_t(np.arange(dim), shape, df=15)
    gaussian = multivariate_normal(np.arange(dim), 1.15 * shape)
    points = np.concatenate(
        [density.rvs(4000, random_state=rng).reshape(4000, dim) for density in (known, gaussian)]
    )
    both = np.stack([known.logpdf(points) + 3.0, gaussian.logpdf(points)], axis=1)
    assert log_masses(both, (4000, 4000)) == pytest.approx([3.0, 0.0], abs=0.05)


def test_densities_that_overlap_in_a_row_weigh_each_other() -> None:
    """The last one, of known mass, overlaps with the middle one alone: the first is weighed through it."""
    rng = np.random.default_rng(1)
    dim, width = 20, 0.6
    centres = np.zeros((3, dim))
    centres[:, 0] = (-1.5, 0.0, 1.5)
    counts = (4000, 1000, 3000)
    points = np.concatenate(
        [centre + width * rng.normal(size=(n, dim)) for centre, n in zip(centres, counts, strict=True)]
    )
    logs = np.stack([normal_log_density(points, centre, width) for centre in centres], axis=1)
    found = log_masses(logs + np.array([2.0, -5.0, 0.0]), counts)
    assert found == pytest.approx([2.0, -5.0, 0.0], abs=0.15)


def test_shares_of_one_density_weigh_as_much_as_they_hold() -> None:
    """A density cut in two by a smooth share, whose draws tell that 0.3 of it lie on one side."""
    rng = np.random.default_rng(2)
    points = np.concatenate([rng.normal(-1.0, 0.5, 30_000 * 3), rng.normal(1.0, 0.5, 30_000 * 7)])[:, None]
    share = 1.0 / (1.0 + np.exp(8.0 * points[:, 0]))
    is_left = rng.random(len(points)) < share
    left, right = (points[mask][rng.permutation(mask.sum())[:5000]] for mask in (is_left, ~is_left))
    proposed = rng.normal(0.0, 1.5, (5000, 1))
    every = np.concatenate([left, right, proposed])

    def log_density(x: Floats) -> Floats:
        parts = [np.log(w) + normal_log_density(x, np.array([c]), 0.5) for w, c in ((0.3, -1.0), (0.7, 1.0))]
        found: Floats = np.logaddexp(*parts)
        return found

    logs = np.stack(
        [
            log_density(every) - np.logaddexp(0.0, 8.0 * every[:, 0]),
            log_density(every) - np.logaddexp(0.0, -8.0 * every[:, 0]),
            normal_log_density(every, np.zeros(1), 1.5),
        ],
        axis=1,
    )
    masses = np.exp(log_masses(logs, (5000, 5000, 5000)))
    assert masses[:2] == pytest.approx([is_left.mean(), 1.0 - is_left.mean()], abs=0.01)


def test_equal_densities_need_no_iteration() -> None:
    logs = np.zeros((17, 2))
    logs[:, 0] = 2.5
    assert log_masses(logs, (10, 7)) == pytest.approx([2.5, 0.0])
