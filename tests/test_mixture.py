"""Mixtures of Gaussians: density, draws, fits to weighted points."""

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from bayes_sched.sampling.mixture import GaussianMixture, fit_mixture

KNOWN = GaussianMixture(
    np.array([0.3, 0.7]),
    np.array([[0.0, 0.0, 0.0], [6.0, -5.0, 1.0]]),
    np.array(
        [
            [[1.0, 0.6, 0.0], [0.6, 2.0, 0.3], [0.0, 0.3, 0.5]],
            [[0.5, -0.2, 0.1], [-0.2, 0.4, 0.0], [0.1, 0.0, 3.0]],
        ]
    ),
)


def test_the_density_is_that_of_scipy_near_and_far() -> None:
    points = np.random.default_rng(0).normal(0.0, 10.0, (200, 3))
    terms = [
        np.log(weight) + multivariate_normal(mean, covariance).logpdf(points)
        for weight, mean, covariance in zip(KNOWN.weights, KNOWN.means, KNOWN.covariances, strict=True)
    ]
    assert KNOWN.logpdf(points) == pytest.approx(logsumexp(terms, axis=0), rel=1e-10)


def test_a_component_of_no_weight_adds_nothing_without_a_warning() -> None:
    covariances = np.stack([np.eye(2), 4.0 * np.eye(2)])
    both = GaussianMixture(np.array([1.0, 0.0]), np.array([[0.0, 1.0], [5.0, 5.0]]), covariances)
    alone = GaussianMixture(np.ones(1), both.means[:1], covariances[:1])
    points = np.random.default_rng(2).normal(size=(20, 2)) * 4.0
    assert both.logpdf(points) == pytest.approx(alone.logpdf(points))


def test_draws_have_the_moments_of_the_mixture() -> None:
    size = 40_000
    draws = KNOWN.sample(size, np.random.default_rng(1))
    mean = KNOWN.weights @ KNOWN.means
    centred = KNOWN.means - mean
    covariance = np.einsum("k,kij->ij", KNOWN.weights, KNOWN.covariances) + np.einsum(
        "k,ki,kj->ij", KNOWN.weights, centred, centred
    )
    error = np.sqrt(np.diag(covariance) / size)
    assert np.abs(draws.mean(axis=0) - mean).max() < 4.5 * error.max()
    # A sample covariance has a relative error of about sqrt(2 / size) = 0.7 % for a normal.
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    assert np.abs((np.cov(draws.T) - covariance) / scale).max() < 0.04


def test_a_background_takes_its_share_and_has_the_mixtures_own_moments() -> None:
    assert KNOWN.inflated(3.0).covariances == pytest.approx(9.0 * KNOWN.covariances)
    broad = KNOWN.with_background(0.2, 2.0)
    draws = KNOWN.sample(100_000, np.random.default_rng(2))
    assert broad.weights == pytest.approx([0.24, 0.56, 0.2])
    assert broad.means[2] == pytest.approx(KNOWN.weights @ KNOWN.means)
    spread = np.sqrt(np.diag(broad.covariances[2]))
    assert spread == pytest.approx(2.0 * draws.std(axis=0), rel=0.02)  # its error is below 0.5 %


def test_a_known_mixture_is_recovered_from_weighted_points() -> None:
    rng = np.random.default_rng(3)
    points = KNOWN.inflated(1.5).sample(8000, rng)
    weights = np.exp(KNOWN.logpdf(points) - KNOWN.inflated(1.5).logpdf(points))
    fitted = fit_mixture(points, weights, num_components=2, rng=rng, max_iterations=200)
    order = np.argsort(fitted.means[:, 0])
    effective = weights.sum() ** 2 / np.square(weights).sum()
    assert fitted.weights[order] == pytest.approx(KNOWN.weights, abs=4 * np.sqrt(0.21 / effective))
    error = np.sqrt(np.einsum("kii->ki", KNOWN.covariances) / (KNOWN.weights * effective)[:, None])
    assert np.abs((fitted.means[order] - KNOWN.means) / error).max() < 4.5
    variances = np.einsum("kii->ki", fitted.covariances[order])
    deviation = np.sqrt(variances / np.einsum("kii->ki", KNOWN.covariances))
    # The five points of the shrinkage and the sampling error (about 2 %) move them a little.
    assert deviation == pytest.approx(np.ones((2, 3)), abs=0.09)


def test_points_of_no_weight_do_not_move_the_fit() -> None:
    rng = np.random.default_rng(4)
    points = np.vstack([rng.standard_normal((3000, 2)), rng.normal(50.0, 1.0, (3000, 2))])
    weights = np.repeat([1.0, 0.0], 3000)
    fitted = fit_mixture(points, weights, num_components=2, rng=rng)
    assert np.abs(fitted.means).max() < 5.0
    assert fitted.weights @ fitted.means == pytest.approx(points[:3000].mean(axis=0), abs=1e-6)


def test_more_components_than_the_points_support_do_not_collapse() -> None:
    rng = np.random.default_rng(5)
    points = rng.standard_normal((60, 3))
    fitted = fit_mixture(points, np.ones(60), num_components=12, rng=rng)
    assert 1 <= fitted.num_components <= 12
    assert fitted.weights.sum() == pytest.approx(1.0)
    # Shrinkage by dim + 2 points of the mean covariance keeps every axis above a good share of it.
    assert np.linalg.eigvalsh(fitted.covariances).min() > 0.01


def test_a_start_is_kept_and_missing_components_are_added_where_it_is_bad() -> None:
    rng = np.random.default_rng(6)
    points = KNOWN.sample(4000, rng)
    start = GaussianMixture(np.ones(1), KNOWN.means[:1], KNOWN.covariances[:1])
    fitted = fit_mixture(points, np.ones(4000), num_components=2, rng=rng, start=start)
    order = np.argsort(fitted.means[:, 0])
    assert fitted.means[order] == pytest.approx(KNOWN.means, abs=0.3)
    assert fitted.weights[order] == pytest.approx(KNOWN.weights, abs=4 * np.sqrt(0.21 / 4000))
    enough = fit_mixture(points, np.ones(4000), num_components=1, rng=rng, start=KNOWN)
    assert enough.num_components == 2


def test_components_that_overlap_are_merged_and_the_lightest_left_out() -> None:
    mixture = GaussianMixture(
        np.array([0.4, 0.2, 0.3, 0.1]),
        np.array([[0.0, 0.0], [0.5, 0.0], [20.0, 0.0], [0.0, 50.0]]),
        np.stack([np.eye(2)] * 4),
    )
    found = mixture.untangled(2)
    assert found.weights == pytest.approx([0.6 / 0.9, 0.3 / 0.9])
    assert found.means == pytest.approx(np.array([[0.5 * 0.2 / 0.6, 0.0], [20.0, 0.0]]))
    # The merged one has the mean covariance and that of the means.
    assert found.covariances[0, 0, 0] == pytest.approx(1.0 + 0.25 * (1 / 3) * (2 / 3))
    assert mixture.untangled(9).num_components == 3
