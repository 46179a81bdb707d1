r"""Bridge sampling: the masses of several densities, from draws of all of them.

For densities f_k known up to their masses :math:`Z_k`, with :math:`n_k` draws each, the masses solve

.. math::  Z_k = \sum_x \frac{f_k(x)}{\sum_l n_l f_l(x) / Z_l},

the sum over all draws: each helps to weigh every density that is not negligible there. It suffices that
densities overlap, where importance sampling needs one that covers all the others. Meng and Wong (1996),
Statistica Sinica 6, for two; Kong et al. (2003), Journal of the Royal Statistical Society B 65; Shirts and
Chodera (2008), Journal of Chemical Physics 129.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import logsumexp

from bayes_sched.density import Density
from bayes_sched.mixture import Floats
from bayes_sched.partition import Partition

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
