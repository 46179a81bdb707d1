"""The components of a posterior of many coordinates, where importance sampling has no chance.

1. NUTS visits each mode that was found, and a Gaussian is fitted to where it went.
2. To where NUTS went this time a mixture with more components is fitted, and NUTS tries these.

The mixture is one of the leading coordinates, the *head*, on which all others depend in the same, linear
way: so many covariances could not be told otherwise. Bridge sampling gives the masses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import logsumexp

from bayes_sched.arrays import Floats
from bayes_sched.sampling.components import Components, Density
from bayes_sched.sampling.mixture import GaussianMixture, fit_mixture, regular, stacked
from bayes_sched.sampling.nuts import ComponentSampler, Progress, SamplerSettings, portion

MOST_MODES = 3
INFLATION = 1.05  # a map with tails a little too wide is benign, too narrow is not
_PROPOSED = 4000  # draws of the mixture
_SETTLING = (300, 700)  # draws a chain of NUTS in each mode in two rounds
_SETTLING_TUNE = 300
_TRIAL = 200  # draws, and tuning draws before, a chain of NUTS in each component of the finer mixture
_NUM_COMPONENTS = 6
_LEAST_WEIGHT = 0.05  # of a mode, whatever its mass, so that the finer mixture knows it
_LEAST_VARIANCE = 1e-9  # of a component, relative to that of all draws: chains that are stuck have none


def find_components(
    nuts: ComponentSampler,
    modes: GaussianMixture,
    *,
    head: int,
    settings: SamplerSettings,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> tuple[Components, Floats]:
    """Return nearly Gaussian components of a posterior and their masses, dims (component,).

    `modes` hold one Gaussian for each mode, apart from each other; given the `head` leading coordinates the
    others are nearly independent Gaussians.
    """
    mixture = modes
    for number, draws in enumerate(_SETTLING):
        paced = replace(settings, tune=_SETTLING_TUNE, seed=settings.seed + number)
        found, masses = _visit(nuts, Components(mixture), draws, paced, rng, progress)
        weights = masses.clip(_LEAST_WEIGHT)
        fitted = [fit_mixture(points, num_components=1, rng=rng) for points in found]
        mixture = stacked(fitted, weights / weights.sum())
    components = Components(_finer(found, weights, head, rng).inflated(INFLATION))
    paced = replace(settings, tune=_TRIAL, seed=settings.seed + len(_SETTLING))
    return components, _visit(nuts, components, _TRIAL, paced, rng, progress)[1]


def _visit(
    nuts: ComponentSampler,
    components: Components,
    draws: int,
    settings: SamplerSettings,
    rng: np.random.Generator,
    progress: Progress | None,
) -> tuple[list[Floats], Floats]:
    """Return draws of every component, dims (draw, coordinate), chain after chain, and their masses."""
    every = range(components.mixture.num_components)
    found = []
    for number in every:
        told = portion(progress, number, len(every), "dividing the posterior")
        points, _ = nuts.draw(components, number, draws, settings, told)
        found.append(points.reshape(-1, nuts.density.dim))
    return found, bridge_masses(nuts.density, components, every, found, rng)


def _finer(draws: Sequence[Floats], weights: Floats, head: int, rng: np.random.Generator) -> GaussianMixture:
    """Fit a mixture of the head to weighted sets of draws, and the other coordinates' regression on it."""
    points = np.concatenate(draws)
    weight = np.repeat(weights * [1.0 / len(found) for found in draws], [len(found) for found in draws])
    weight = weight / weight.sum()
    mean = weight @ points
    scale = np.sqrt(weight @ np.square(points - mean))
    points = (points - mean) / scale
    covariance = regular((points * weight[:, None]).T @ points)
    slopes = np.linalg.solve(covariance[:head, :head], covariance[:head, head:])
    rest = np.diag(np.diag(covariance[head:, head:] - slopes.T @ covariance[:head, head:]))
    heads = fit_mixture(points[:, :head], weight, num_components=_NUM_COMPONENTS, rng=rng)
    means = np.hstack([heads.means, heads.means @ slopes])
    cross = heads.covariances @ slopes
    joint = [
        np.block([[own, shared], [shared.T, slopes.T @ shared + rest]])
        for own, shared in zip(heads.covariances, cross, strict=True)
    ]
    covariances = np.array(joint) + _LEAST_VARIANCE * np.eye(points.shape[1])
    return GaussianMixture(heads.weights, mean + scale * means, covariances * np.outer(scale, scale))


def bridge_masses(
    density: Density,
    components: Components,
    numbers: ArrayLike,
    draws: Sequence[Floats],
    rng: np.random.Generator,
) -> Floats:
    """Return the masses of some components, dims (component,), relative to their sum.

    `draws` of each of them have dims (draw, coordinate); to these come draws of the mixture, the one density
    of known mass.
    """
    points = np.concatenate([*draws, components.mixture.sample(_PROPOSED, rng)])
    joint = components.mixture.component_logpdf(points)
    log_mixture = logsumexp(joint, axis=1, keepdims=True)
    log_densities = density.values(points)[:, None] + joint[:, np.asarray(numbers)] - log_mixture
    counts = [*map(len, draws), _PROPOSED]
    found = log_masses(np.hstack([log_densities, log_mixture]), counts)[:-1]
    masses: Floats = np.exp(found - logsumexp(found))
    return masses


def log_masses(log_densities: Floats, counts: Sequence[int]) -> Floats:
    """Return the logarithms of the masses of densities, dims (density,), the last one's being 0.

    From every density at every point, dims (point, density), of which the first `counts[0]` are draws of the
    first density, and so on. The masses minimise a convex function whose gradient is the difference of both
    sides of the bridge equation.
    """
    number = np.asarray(counts, dtype=float)
    relative = log_densities - log_densities[:, -1:]
    own = np.split(relative, np.cumsum(counts)[:-1])

    def excess(masses: Floats) -> tuple[float, Floats]:
        joint = relative - np.append(masses, 0.0) + np.log(number)
        total = logsumexp(joint, axis=1)
        shares = np.exp(joint - total[:, None]).sum(axis=0)
        value = (total.sum() + number[:-1] @ masses) / number.sum()
        return float(value), (number - shares)[:-1] / number.sum()

    start = np.array([np.median(points[:, k]) for k, points in enumerate(own[:-1])])
    found = minimize(excess, start, jac=True, method="BFGS", options={"gtol": 1e-8})
    return np.append(found.x, 0.0)
