"""A posterior of many coordinates divided into parts, where importance sampling has no chance.

1. Each mode that the pilot found is a part; NUTS goes there, and a Gaussian is fitted to where it went.
2. Where NUTS went this time, a mixture with more components is fitted, and NUTS tries its parts.

The mixture is one of the leading coordinates, the *head*, on which all others depend in the same, linear
way: so many covariances could not be told otherwise. Bridge sampling gives the masses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import logsumexp

from bayes_sched.arrays import Floats
from bayes_sched.sampling.components import Density, Partition
from bayes_sched.sampling.mixture import GaussianMixture, fit_mixture, regular
from bayes_sched.sampling.nuts import PartSampler, Progress, SamplerSettings, portion

_PROPOSED = 4000  # draws of the mixture


def log_masses(log_densities: Floats, counts: Sequence[int]) -> Floats:
    """Return the logarithms of the masses of densities, dims (density,), the last one's being 0.

    They minimise a convex function whose gradient is the difference of both sides of the equation.

    Parameters
    ----------
    log_densities : ndarray, dims (point, density)
        Of every density at every point.
    counts : sequence of int, dims (density,)
        Draws of each: the first `counts[0]` points are draws of the first density, and so on.
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


def part_masses(
    density: Density,
    partition: Partition,
    parts: ArrayLike,
    draws: Sequence[Floats],
    rng: np.random.Generator,
) -> Floats:
    """Return the masses of some parts of a posterior, dims (part,), relative to their sum.

    Parameters
    ----------
    density : Density
        The posterior.
    partition : Partition
    parts : array_like of int, dims (part,)
    draws : sequence of ndarray, dims (draw, coordinate)
        Of each of them.
    rng : Generator
        Draws from the mixture, the one density of known mass.
    """
    points = np.concatenate([*draws, partition.mixture.sample(_PROPOSED, rng)])
    joint = partition.mixture.component_logpdf(points)
    log_mixture = logsumexp(joint, axis=1, keepdims=True)
    log_parts = density.values(points)[:, None] + joint[:, np.asarray(parts)] - log_mixture
    counts = [*map(len, draws), _PROPOSED]
    found = log_masses(np.hstack([log_parts, log_mixture]), counts)[:-1]
    masses: Floats = np.exp(found - logsumexp(found))
    return masses


MOST_MODES = 3
_SETTLING = (300, 700)  # draws a chain of NUTS in each mode in two rounds
_SETTLING_TUNE = 300
_TRIAL = 200  # draws, and tuning draws before, a chain of NUTS in each part of the finer mixture
_NUM_COMPONENTS = 6
_LEAST_WEIGHT = 0.05  # of a mode, whatever its mass, so that the finer mixture knows it
_LEAST_VARIANCE = 1e-9  # of a component, relative to that of all draws: chains that are stuck have none
INFLATION = 1.05  # a map with tails a little too wide is benign, too narrow is not


@dataclass(frozen=True)
class Division:
    """The parts of a posterior and what is known of their masses before they are sampled.

    Attributes
    ----------
    partition : Partition
    masses : ndarray, dims (part,)
    """

    partition: Partition
    masses: Floats


def divide(
    nuts: PartSampler,
    modes: GaussianMixture,
    *,
    head: int,
    settings: SamplerSettings,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> Division:
    """Divide a posterior into nearly Gaussian parts.

    Parameters
    ----------
    nuts : PartSampler
    modes : GaussianMixture
        One Gaussian for each mode, apart from each other.
    head : int
        Number of leading coordinates given which the others are nearly independent Gaussians.
    settings : SamplerSettings
    rng : Generator
    progress : callable, optional
    """
    mixture = modes
    for number, draws in enumerate(_SETTLING):
        paced = replace(settings, tune=_SETTLING_TUNE, seed=settings.seed + number)
        found = _visit(nuts, Partition(mixture), draws, paced, progress)
        every = range(mixture.num_components)
        weights = part_masses(nuts.density, Partition(mixture), every, found, rng).clip(_LEAST_WEIGHT)
        fitted = [fit_mixture(points, _equal(points), num_components=1, rng=rng) for points in found]
        mixture = GaussianMixture(
            weights / weights.sum(),
            np.concatenate([one.means for one in fitted]),
            np.concatenate([one.covariances for one in fitted]),
        )
    mixture = _finer(found, weights, head, rng)
    partition = Partition(mixture.inflated(INFLATION))
    paced = replace(settings, tune=_TRIAL, seed=settings.seed + len(_SETTLING))
    tried = _visit(nuts, partition, _TRIAL, paced, progress)
    every = range(mixture.num_components)
    return Division(partition, part_masses(nuts.density, partition, every, tried, rng))


def _visit(
    nuts: PartSampler, partition: Partition, draws: int, settings: SamplerSettings, progress: Progress | None
) -> list[Floats]:
    """Return draws of every part, dims (draw, coordinate), the chains one after the other."""
    number = partition.mixture.num_components
    visited = (
        nuts.draw(
            partition, part, draws, settings, portion(progress, part, number, "dividing the posterior")
        )[0]
        for part in range(number)
    )
    return [points.reshape(-1, nuts.density.dim) for points in visited]


def _equal(points: Floats) -> Floats:
    return np.full(len(points), 1.0 / len(points))


def _finer(draws: Sequence[Floats], weights: Floats, head: int, rng: np.random.Generator) -> GaussianMixture:
    """Fit a mixture of the head to draws of several parts, and the other coordinates' regression on it."""
    points = np.concatenate(draws)
    weight = np.concatenate([w * _equal(found) for w, found in zip(weights, draws, strict=True)])
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
