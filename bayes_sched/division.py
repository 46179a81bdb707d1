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

from bayes_sched.bridge import part_masses
from bayes_sched.mixture import Floats, GaussianMixture, fit_mixture, regular
from bayes_sched.nuts import PartSampler, Progress, portion
from bayes_sched.partition import Partition
from bayes_sched.settings import SamplerSettings

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
