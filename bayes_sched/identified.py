r"""What data identify of a server, apart from what they leave open: the coordinates that servers share.

Parameters of the saturation equation trade against each other, so that servers cannot be likened parameter by
parameter. What a trace does identify is

.. math::

    L_0 = \tau_0 + a_1 / k_S, \qquad c = a_1 + \tau_S, \qquad \tau_B, \qquad a_1 = w_1 / P_{max},

the floor for small S, the slope for large S and the latency per request, and with them the noise and whatever
further parameters a model has. All of it is positive and described by its logarithm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bayes_sched.coordinates import softplus
from bayes_sched.mixture import GaussianMixture, fit_mixture

if TYPE_CHECKING:
    from bayes_sched.priors import Priors

Floats = NDArray[np.float64]

SUMS = ("L_0", "c")
"""The identified sums, each in the place of the parameters that it is made of."""

_EQUATION = ("P_max", "k_B", "k_S", "w_0", "w_1", "tau_0", "tau_B", "tau_S")
_LOG_2PI = float(np.log(2.0 * np.pi))
_PRIOR_DRAWS, _COMPONENTS = 20_000, 8  # of the mixture that stands for the documented prior of the sums
_CANDIDATES = 200  # ways to make up a server's sums, of which one is drawn

# What a sum is made up of: P_max, (a_1 / k_S) / tau_0 and a_1 / tau_S, as powers of these parameters.
_PARTS = ("P_max", "w_1", "k_S", "tau_0", "tau_S")
_RATIOS: Floats = np.array([[1, 0, 0, 0, 0], [-1, 1, -1, -1, 0], [-1, 1, 0, 0, -1]], dtype=np.float64)


def identified_names(priors: Priors) -> tuple[str, ...]:
    """Return the names of all coordinates that data may identify: sums, latency per request, further ones."""
    return (*SUMS, "tau_B", *(name for name in priors if name not in _EQUATION))


def identified(logs: Mapping[str, Any], names: Sequence[str], backend: Any) -> Any:
    """Return the logarithms of the coordinates `names`, last axis.

    Parameters
    ----------
    logs : mapping of str to array-like or TensorVariable
        Logarithms of every parameter.
    names : sequence of str
        Among those that :func:`identified_names` returns.
    backend : module
        :mod:`numpy` or :mod:`pytensor.tensor`.
    """
    log_a_1 = logs["w_1"] - logs["P_max"]
    sums = {
        "L_0": backend.logaddexp(logs["tau_0"], log_a_1 - logs["k_S"]),
        "c": backend.logaddexp(logs["tau_S"], log_a_1),
    }
    return backend.stack([sums[name] if name in sums else logs[name] for name in names], axis=-1)


def log_normal(x: Any, mean: Any, sd: Any, backend: Any) -> Any:
    """Return the log density of a normal distribution."""
    return -0.5 * ((x - mean) / sd) ** 2 - backend.log(sd) - 0.5 * _LOG_2PI


def log_documented(z: Any, names: Sequence[str], priors: Priors, backend: Any) -> Any:
    """Return the log density of coordinates under the documented priors, dims of `z` but the last.

    Parameters are log-normal; the two sums have the density of a mixture of Gaussians fitted to draws.
    """
    sums = _prior_of_sums(priors)
    each = []
    for k in range(sums.num_components):
        offset = backend.stack([z[..., names.index(name)] for name in SUMS], axis=-1) - sums.means[k]
        white = offset @ sums.inverse_cholesky[k].T
        constant = np.log(sums.weights[k]) + np.log(np.diag(sums.inverse_cholesky[k])).sum() - _LOG_2PI
        each.append(constant - 0.5 * (white**2).sum(axis=-1))
    total = each[0]
    for other in each[1:]:
        total = backend.logaddexp(total, other)
    for i, name in enumerate(names):
        if name not in SUMS:
            prior = priors[name]
            total = total + log_normal(z[..., i], np.float64(prior.mu), np.float64(prior.sigma), backend)
    return total


@lru_cache(maxsize=16)
def _prior_of_sums(priors: Priors) -> GaussianMixture:
    rng = np.random.default_rng(0)
    logs = {name: rng.normal(priors[name].mu, priors[name].sigma, _PRIOR_DRAWS) for name in _EQUATION}
    z = identified(logs, SUMS, np)
    return fit_mixture(z, np.ones(len(z)), num_components=_COMPONENTS, rng=rng)


def documented_centre(names: Sequence[str], priors: Priors) -> tuple[Floats, Floats]:
    """Return mean and standard deviation of coordinates under the documented priors, dims (coordinate,)."""
    sums = _prior_of_sums(priors).collapsed()
    moments = {name: (sums.means[0, i], np.sqrt(sums.covariances[0, i, i])) for i, name in enumerate(SUMS)}
    moments |= {name: (prior.mu, prior.sigma) for name, prior in priors.items()}
    mean, sd = np.array([moments[name] for name in names]).T
    return mean, sd


def complete(z: Floats, names: Sequence[str], priors: Priors, rng: np.random.Generator) -> dict[str, Floats]:
    """Draw the logarithms of every parameter given identified coordinates, as documented priors have them.

    How the sums are made up is drawn by sampling-importance-resampling. With the ratios of the two parts of
    :math:`L_0` and of :math:`c` in the place of :math:`\tau_0, \tau_S` the map to the parameters keeps volumes;
    candidates have P_max and ratios from their linear-Gaussian prior, and weights for the parameters they lead to.

    Parameters
    ----------
    z : ndarray, dims (draw, coordinate)
        Logarithms of the coordinates `names`.
    names : sequence of str
    priors : Priors
    rng : Generator

    Returns
    -------
    dict of str to ndarray, dims (draw,)
    """
    shape = (len(z), _CANDIDATES)
    logs = {name: rng.normal(prior.mu, prior.sigma, shape) for name, prior in priors.items()}
    ratios = np.stack([logs[name] for name in _PARTS], axis=-1) @ _RATIOS.T
    _, floor_ratio, slope_ratio = np.moveaxis(ratios, -1, 0)
    known = {name: z[:, i, None] for i, name in enumerate(names)}
    log_a_1 = known["c"] - softplus(-slope_ratio, np)
    logs |= {
        "k_S": log_a_1 - known["L_0"] + softplus(-floor_ratio, np),
        "w_1": log_a_1 + logs["P_max"],
        "tau_0": known["L_0"] - softplus(floor_ratio, np),
        "tau_S": known["c"] - softplus(slope_ratio, np),
    }
    log_weight = sum(log_normal(logs[name], priors[name].mu, priors[name].sigma, np) for name in _PARTS)
    chosen = (log_weight - _log_ratios(ratios, priors) + rng.gumbel(size=shape)).argmax(axis=1)
    picked = {name: value[np.arange(len(z)), chosen] for name, value in logs.items()}
    return picked | {name: z[:, i] for i, name in enumerate(names) if name not in SUMS}


def _log_ratios(ratios: Floats, priors: Priors) -> Floats:
    """Return the log density of P_max and the two ratios under the documented priors, but for a constant."""
    mean = _RATIOS @ [priors[name].mu for name in _PARTS]
    covariance = (_RATIOS * np.array([priors[name].sigma for name in _PARTS]) ** 2) @ _RATIOS.T
    white = (ratios - mean) @ np.linalg.inv(np.linalg.cholesky(covariance)).T
    density: Floats = -0.5 * (white**2).sum(axis=-1)
    return density
