"""Mixtures of Gaussians as approximations of a posterior: density, draws, fit to weighted points."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

Floats = NDArray[np.float64]

_LOG_2PI = float(np.log(2.0 * np.pi))


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of Gaussians.

    Attributes
    ----------
    weights : ndarray, dims (component,)
    means : ndarray, dims (component, dim)
    covariances : ndarray, dims (component, dim, dim)
    """

    weights: Floats
    means: Floats
    covariances: Floats

    @classmethod
    def standard(cls, dim: int) -> GaussianMixture:
        """Return the standard normal as a mixture of one component."""
        return cls(np.ones(1), np.zeros((1, dim)), np.eye(dim)[None])

    @property
    def num_components(self) -> int:
        """Number of components."""
        return len(self.weights)

    @cached_property
    def cholesky(self) -> Floats:
        """Lower Cholesky factors of the covariances, dims (component, dim, dim)."""
        return np.linalg.cholesky(self.covariances)

    @cached_property
    def inverse_cholesky(self) -> Floats:
        """Inverses of :attr:`cholesky`, lower triangular."""
        return np.tril(np.linalg.inv(self.cholesky))

    def component_logpdf(self, points: Floats) -> Floats:
        """Return log weight plus log density of each component, dims (point, component)."""
        out = np.empty((len(points), self.num_components))
        for k, factor in enumerate(self.inverse_cholesky):
            whitened = (points - self.means[k]) @ factor.T
            out[:, k] = -0.5 * np.einsum("ni,ni->n", whitened, whitened) + np.log(np.diag(factor)).sum()
        log_weights: Floats = np.log(self.weights)
        joint: Floats = out + log_weights - 0.5 * points.shape[1] * _LOG_2PI
        return joint

    def logpdf(self, points: Floats) -> Floats:
        """Return the log density at the points, dims (point,)."""
        density: Floats = logsumexp(self.component_logpdf(points), axis=1)
        return density

    def sample(self, size: int, rng: np.random.Generator) -> Floats:
        """Draw points, dims (point, dim)."""
        component = rng.choice(self.num_components, size=size, p=self.weights)
        noise = rng.standard_normal((size, self.means.shape[1]))
        points: Floats = self.means[component] + np.einsum("nij,nj->ni", self.cholesky[component], noise)
        return points

    def inflated(self, factor: float) -> GaussianMixture:
        """Return the mixture with every standard deviation multiplied by `factor`."""
        return GaussianMixture(self.weights, self.means, self.covariances * factor**2)

    def with_background(self, share: float, factor: float) -> GaussianMixture:
        """Return the mixture with a broad component, its own mean and `factor`-fold standard deviations."""
        mean = self.weights @ self.means
        centred = self.means - mean
        spread = np.einsum(
            "k,kij->ij", self.weights, self.covariances + centred[:, :, None] * centred[:, None, :]
        )
        return GaussianMixture(
            np.append((1.0 - share) * self.weights, share),
            np.vstack([self.means, mean]),
            np.concatenate([self.covariances, factor**2 * spread[None]]),
        )


def fit_mixture(
    points: Floats,
    weights: Floats,
    *,
    num_components: int,
    rng: np.random.Generator,
    start: GaussianMixture | None = None,
    max_iterations: int = 40,
    tolerance: float = 1e-3,
) -> GaussianMixture:
    """Fit a mixture to weighted points by expectation maximisation.

    Covariances are shrunk towards the mean covariance within components, as if `dim` + 2 more points of that
    covariance had been seen (the mode under an inverse-Wishart prior), so that no component collapses.

    Parameters
    ----------
    points : ndarray, dims (point, dim)
    weights : ndarray, dims (point,)
        Importance weights, not negative; need not sum to one.
    num_components : int
        Components to start with; a component that ends with hardly any weight is dropped.
    rng : Generator
        Chooses the starting means.
    start : GaussianMixture, optional
        Mixture to start from; missing components are added at badly covered points.
    """
    weights = weights / weights.sum()
    effective = 1.0 / np.square(weights).sum()
    dim = points.shape[1]
    mixture = _start(points, weights, num_components, rng, start)
    previous = -np.inf
    for _ in range(max_iterations):
        joint = mixture.component_logpdf(points)
        total = logsumexp(joint, axis=1)
        score = float(weights @ total)
        if score - previous < tolerance:
            break
        previous = score
        resp = np.exp(joint - total[:, None]) * weights[:, None]
        share = resp.sum(axis=0)
        keep = share * effective > 2.0
        resp, share = resp[:, keep], share[keep] / share[keep].sum()
        counts = resp.sum(axis=0)
        means = (resp.T @ points) / counts[:, None]
        scatter = np.stack(
            [(points - m).T @ ((points - m) * r[:, None]) for m, r in zip(means, resp.T, strict=True)]
        )
        pooled = scatter.sum(axis=0) / counts.sum()
        seen = counts * effective
        prior = dim + 2.0
        covariances = (scatter * effective + prior * pooled) / (seen + prior)[:, None, None]
        mixture = GaussianMixture(share, means, _regular(covariances))
    return mixture


def _start(
    points: Floats,
    weights: Floats,
    num_components: int,
    rng: np.random.Generator,
    start: GaussianMixture | None,
) -> GaussianMixture:
    """Return a first mixture: `start`, and components at points far from it (k-means++ seeding)."""
    mean = weights @ points
    spread = (points - mean).T @ ((points - mean) * weights[:, None])
    whiten = np.linalg.inv(np.linalg.cholesky(_regular(spread[None])[0]))
    white = (points - mean) @ whiten.T
    chosen: list[Floats] = [] if start is None else list((start.means - mean) @ whiten.T)
    if not chosen:
        chosen.append(white[rng.choice(len(points), p=weights)])
    distance = np.min([np.square(white - c).sum(axis=1) for c in chosen], axis=0)
    seeds = []
    for _ in range(num_components - len(chosen)):
        chance = weights * distance + 1e-300
        seeds.append(int(rng.choice(len(points), p=chance / chance.sum())))
        distance = np.minimum(distance, np.square(white - white[seeds[-1]]).sum(axis=1))
    if start is None:
        means = np.vstack([mean + np.linalg.solve(whiten, chosen[0]), points[seeds]])
        covariances = np.repeat(_regular(spread[None] / 4.0), len(means), axis=0)
        return GaussianMixture(np.full(len(means), 1.0 / len(means)), means, covariances)
    if not seeds:
        return start
    pooled = np.einsum("k,kij->ij", start.weights, start.covariances)
    share = 0.2
    return GaussianMixture(
        np.concatenate([(1 - share) * start.weights, np.full(len(seeds), share / len(seeds))]),
        np.vstack([start.means, points[seeds]]),
        np.concatenate([start.covariances, np.repeat(_regular(pooled[None]), len(seeds), axis=0)]),
    )


def _regular(covariances: Floats) -> Floats:
    """Add a millionth of each variance to the diagonal: positive definite whatever the rounding."""
    diagonal = np.einsum("kii->ki", covariances)
    ridge: Floats = 1e-6 * np.einsum("ki,ij->kij", diagonal + 1e-30, np.eye(covariances.shape[1]))
    return covariances + ridge
