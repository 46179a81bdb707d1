r"""Bridge sampling: the mass of an unnormalised density, from draws of it and a Gaussian that resembles it.

For draws x of the density f and y of a normalised g,

.. math::  \int f = \frac{E_g[f h]}{E_f[g h]}

for any bridge h; the optimal one, :math:`h = 1 / (s_f f / \int f + s_g g)`, is found by iteration. Meng and
Wong (1996), Statistica Sinica 6. Where importance sampling needs g to cover all of f, this needs only that
they overlap, which is what many coordinates leave.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import logsumexp

from bayes_sched.mixture import Floats, GaussianMixture, fit_mixture

_MAX_ITERATIONS = 1000
_TOLERANCE = 1e-8


def log_mass(log_density: Callable[[Floats], Floats], draws: Floats, rng: np.random.Generator) -> float:
    """Return the logarithm of the integral of a density.

    Parameters
    ----------
    log_density : callable
        Points, dims (point, coordinate), to log densities up to the constant that is wanted.
    draws : ndarray, dims (draw, coordinate)
        Draws of the density. A Gaussian is fitted to every other one, the rest make the bridge: points that
        chose the Gaussian would look too likely under it.
    rng : Generator
    """
    fitted, own = draws[::2], draws[1::2]
    weights = np.full(len(fitted), 1.0 / len(fitted))
    gaussian = fit_mixture(fitted, weights, num_components=1, rng=rng)
    proposed = gaussian.sample(len(own), rng)
    return bridged(_ratio(log_density, gaussian, own), _ratio(log_density, gaussian, proposed))


def _ratio(log_density: Callable[[Floats], Floats], gaussian: GaussianMixture, points: Floats) -> Floats:
    return log_density(points) - gaussian.logpdf(points)


def bridged(own: Floats, proposed: Floats) -> float:
    """Return the log mass from log ratios of density to Gaussian.

    Parameters
    ----------
    own, proposed : ndarray, dims (draw,)
        At draws of the density and at draws of the Gaussian.
    """
    log_shares = np.log([len(own), len(proposed)]) - np.log(len(own) + len(proposed))
    mass = float(np.median(own))
    for _ in range(_MAX_ITERATIONS):
        above = proposed - np.logaddexp(log_shares[0] + proposed, log_shares[1] + mass)
        below = -np.logaddexp(log_shares[0] + own, log_shares[1] + mass)
        following = float(logsumexp(above) - np.log(len(proposed)) - logsumexp(below) + np.log(len(own)))
        if abs(following - mass) < _TOLERANCE:
            return following
        mass = following
    return mass
