"""Mixtures of Gaussians as approximations of a posterior: density, draws, fit to weighted points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import logsumexp

from bayes_sched.arrays import Floats

_LOG_2PI = float(np.log(2.0 * np.pi))
_APART = -np.log(0.01)  # distance of Bhattacharyya of components that hardly overlap
_TOLERANCE = 1e-3  # of the mean log density of the points, at which a fit has converged


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture: weights, dims (component,), means (component, dim), covariances (component, dim, dim)."""

    weights: Floats
    means: Floats
    covariances: Floats

    @property
    def num_components(self) -> int:
        """Number of components."""
        return len(self.weights)

    @cached_property
    def log_weights(self) -> Floats:
        """Logarithms of the weights, dims (component,); minus infinity where a fit has left nothing."""
        with np.errstate(divide="ignore"):
            return np.log(self.weights)

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
        joint: Floats = out + self.log_weights - 0.5 * points.shape[1] * _LOG_2PI
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

    def merged(self, other: GaussianMixture, share: float) -> GaussianMixture:
        """Return a mixture of this one and another, which gets `share` of the weight."""
        own = GaussianMixture((1.0 - share) * self.weights, self.means, self.covariances)
        return stacked([own, GaussianMixture(share * other.weights, other.means, other.covariances)])

    def collapsed(self) -> GaussianMixture:
        """Return one Gaussian of the mixture's mean and covariance."""
        mean = self.weights @ self.means
        centred = self.means - mean
        around = self.covariances + centred[:, :, None] * centred[:, None, :]
        return GaussianMixture(np.ones(1), mean[None], np.einsum("k,kij->ij", self.weights, around)[None])

    def completed(self, other: GaussianMixture) -> GaussianMixture:
        """Return the mixture and those components of another one, weighted as there, that it is far from."""
        apart = np.flatnonzero(bhattacharyya(other, self).min(axis=1) > _APART)
        if not len(apart):
            return self
        share = float(other.weights[apart].sum())
        missing = GaussianMixture(
            other.weights[apart] / other.weights[apart].sum(), other.means[apart], other.covariances[apart]
        )
        return self.merged(missing, share)

    def untangled(self, most: int) -> GaussianMixture:
        """Return at most so many components that hardly overlap.

        Those that do are merged, and the lightest are left out.
        """
        found: list[GaussianMixture] = []
        for k in np.argsort(-self.weights):
            one = GaussianMixture(self.weights[[k]], self.means[[k]], self.covariances[[k]])
            near = [i for i, other in enumerate(found) if float(bhattacharyya(one, other).min()) < _APART]
            if near:
                found[near[0]] = stacked([found[near[0]], one])
            elif len(found) < most:
                found.append(one)
        weights = np.array([f.weights.sum() for f in found])
        normalised = (GaussianMixture(f.weights / f.weights.sum(), f.means, f.covariances) for f in found)
        return stacked([one.collapsed() for one in normalised], weights / weights.sum())

    def with_background(self, share: float, factor: float) -> GaussianMixture:
        """Return the mixture with a broad component, its own mean and `factor`-fold standard deviations."""
        return self.merged(self.collapsed().inflated(factor), share)


def stacked(mixtures: Sequence[GaussianMixture], weights: Floats | None = None) -> GaussianMixture:
    """Return the components of some mixtures, with the weights that they have or with others."""
    return GaussianMixture(
        np.concatenate([one.weights for one in mixtures]) if weights is None else weights,
        np.concatenate([one.means for one in mixtures]),
        np.concatenate([one.covariances for one in mixtures]),
    )


def bhattacharyya(first: GaussianMixture, second: GaussianMixture) -> Floats:
    """Return the distances of Bhattacharyya between components, dims (component of first, of second)."""
    pair = 0.5 * (first.covariances[:, None] + second.covariances[None, :])
    difference = first.means[:, None] - second.means[None, :]
    quadratic = np.einsum("abi,abi->ab", difference, np.linalg.solve(pair, difference[..., None])[..., 0])
    log_dets = [np.linalg.slogdet(mixture.covariances)[1] for mixture in (first, second)]
    distance: Floats = quadratic / 8.0 + 0.5 * (
        np.linalg.slogdet(pair)[1] - 0.5 * (log_dets[0][:, None] + log_dets[1][None, :])
    )
    return distance


def fit_mixture(
    points: Floats,
    weights: Floats | None = None,
    *,
    num_components: int,
    rng: np.random.Generator,
    start: GaussianMixture | None = None,
    max_iterations: int = 40,
) -> GaussianMixture:
    """Fit a mixture to points, dims (point, dim), of equal or given weights by expectation maximisation.

    It begins with `num_components` at points that `rng` chooses, those of `start` among them; a component
    that ends with hardly any weight is dropped. Covariances are shrunk towards the mean covariance within
    components, as if `dim` + 2 more points of that covariance had been seen (the mode under an
    inverse-Wishart prior), so that no component collapses.
    """
    if weights is None:
        weights = np.full(len(points), 1.0 / len(points))
    weights = weights / weights.sum()
    effective = 1.0 / np.square(weights).sum()
    first = _start(points, weights, num_components, rng, start)
    # Standardised, so that nothing cancels in second moments taken around the origin.
    mean = weights @ points
    scale = np.sqrt(weights @ np.square(points - mean)) + 1e-300
    square = np.outer(scale, scale)
    mixture = GaussianMixture(first.weights, (first.means - mean) / scale, first.covariances / square)
    points = (points - mean) / scale
    # The quadratic forms and the moments of all components are two matrix products.
    row, column = np.triu_indices(points.shape[1])
    features = np.hstack([np.ones((len(points), 1)), points, points[:, row] * points[:, column]])
    previous = -np.inf
    for _ in range(max_iterations):
        joint = features @ _coefficients(mixture).T
        top = joint.max(axis=1, keepdims=True)
        share = np.exp(joint - top)
        total = share.sum(axis=1, keepdims=True)
        score = float(weights @ (top + np.log(total))[:, 0])
        if score - previous < _TOLERANCE:
            break
        previous = score
        moments = (share * (weights[:, None] / total)).T @ features
        moments = moments[moments[:, 0] * effective > 2.0]
        mixture = _from_moments(moments, effective)
    return GaussianMixture(mixture.weights, mean + scale * mixture.means, mixture.covariances * square)


def _coefficients(mixture: GaussianMixture) -> Floats:
    """Return log weights plus log densities as quadratic functions, dims (component, moment)."""
    dim = mixture.means.shape[1]
    row, column = np.triu_indices(dim)
    twice = np.where(row == column, 1.0, 2.0)
    precision = np.linalg.inv(mixture.covariances)
    linear = np.einsum("kij,kj->ki", precision, mixture.means)
    constant = (
        mixture.log_weights
        - 0.5 * np.linalg.slogdet(mixture.covariances)[1]
        - 0.5 * (np.einsum("ki,ki->k", linear, mixture.means) + dim * _LOG_2PI)
    )
    return np.hstack([constant[:, None], linear, -0.5 * twice * precision[:, row, column]])


def _from_moments(moments: Floats, effective: float) -> GaussianMixture:
    """Return the mixture with given counts, sums and sums of products, dims (component, moment)."""
    counts = moments[:, 0]
    dim = int(np.sqrt(2 * moments.shape[1])) - 1  # 1 + dim + dim (dim + 1) / 2 moments
    row, column = np.triu_indices(dim)
    means = moments[:, 1 : dim + 1] / counts[:, None]
    scatter = np.empty((len(counts), dim, dim))
    scatter[:, row, column] = scatter[:, column, row] = moments[:, dim + 1 :]
    scatter -= counts[:, None, None] * means[:, :, None] * means[:, None, :]
    pooled = scatter.sum(axis=0) / counts.sum()
    prior = dim + 2.0
    covariances = (scatter * effective + prior * pooled) / (counts * effective + prior)[:, None, None]
    return GaussianMixture(counts / counts.sum(), means, regular(covariances))


def _start(
    points: Floats, weights: Floats, num: int, rng: np.random.Generator, start: GaussianMixture | None
) -> GaussianMixture:
    """Return a first mixture: `start`, and components at points far from it (k-means++ seeding)."""
    mean = weights @ points
    spread = (points - mean).T @ ((points - mean) * weights[:, None])
    whiten = np.linalg.inv(np.linalg.cholesky(regular(spread)))
    white = (points - mean) @ whiten.T
    chosen: list[Floats] = [] if start is None else list((start.means - mean) @ whiten.T)
    if not chosen:
        chosen.append(white[rng.choice(len(points), p=weights)])
    distance = np.min([np.square(white - c).sum(axis=1) for c in chosen], axis=0)
    seeds = []
    for _ in range(num - len(chosen)):
        probability = weights * distance + 1e-300
        seeds.append(int(rng.choice(len(points), p=probability / probability.sum())))
        distance = np.minimum(distance, np.square(white - white[seeds[-1]]).sum(axis=1))
    if start is None:
        means = np.vstack([mean + np.linalg.solve(whiten, chosen[0]), points[seeds]])
        covariances = np.repeat(regular(spread[None] / 4.0), len(means), axis=0)
        return GaussianMixture(np.full(len(means), 1.0 / len(means)), means, covariances)
    if not seeds:
        return start
    pooled = np.einsum("k,kij->ij", start.weights, start.covariances)
    share = 0.2
    return GaussianMixture(
        np.concatenate([(1 - share) * start.weights, np.full(len(seeds), share / len(seeds))]),
        np.vstack([start.means, points[seeds]]),
        np.concatenate([start.covariances, np.repeat(regular(pooled[None]), len(seeds), axis=0)]),
    )


def regular(covariances: Floats) -> Floats:
    """Add a millionth of each variance to the diagonal, dims (..., dim, dim): rounding cannot undo that."""
    diagonal = np.einsum("...ii->...i", covariances)
    ridge: Floats = 1e-6 * np.einsum("...i,ij->...ij", diagonal + 1e-30, np.eye(covariances.shape[-1]))
    return covariances + ridge
