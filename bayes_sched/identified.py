r"""What data identify of a server, apart from what they leave open: the coordinates that servers share.

Parameters of the saturation equation trade against each other, so that servers cannot be likened parameter by
parameter. What a trace does identify is

.. math::

    L_8 = \tau_0 + (a_0 + 8 a_1) \, g_8, \qquad c = a_1 + \tau_S, \qquad \tau_B, \qquad
    g_8 = \frac{1}{(1 - e^{-8 k_B})(1 - e^{-8 k_S})},

the floor of a small step, of eight decodes, whichever term it is from; the slope for large S; the latency
per request (:math:`a_i = w_i / P_{max}`); and with them the noise and what further parameters a model has.
All of it is positive and described by its logarithm.
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

SUMS = {
    "L_8": ("floor of a step of eight decodes", "ms"),
    "c": ("slope for large S", "ms/token"),
}
"""The identified sums: what they mean, and their units."""

_EQUATION = ("P_max", "k_B", "k_S", "w_0", "w_1", "tau_0", "tau_B", "tau_S")
_LOG_2PI = float(np.log(2.0 * np.pi))
_PRIOR_DRAWS, _COMPONENTS = 20_000, 8  # of the mixture that stands for the documented prior of the sums
_CANDIDATES = 200  # ways to make up a server's sums, of which one is drawn

_FLOOR_STEP = 8.0  # requests and tokens


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
    log_work = backend.logaddexp(logs["w_0"], logs["w_1"] + np.log(_FLOOR_STEP)) - logs["P_max"]
    log_floor = log_work + _log_slowdown(logs["k_B"], logs["k_S"], backend)
    sums = {
        "L_8": backend.logaddexp(logs["tau_0"], log_floor),
        "c": backend.logaddexp(logs["tau_S"], logs["w_1"] - logs["P_max"]),
    }
    return backend.stack([sums[name] if name in sums else logs[name] for name in names], axis=-1)


def _log_slowdown(log_k_B: Any, log_k_S: Any, backend: Any) -> Any:
    """Return the logarithm of g_8."""
    return -sum(backend.log(-backend.expm1(-_FLOOR_STEP * backend.exp(k))) for k in (log_k_B, log_k_S))


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
    z = identified(logs, tuple(SUMS), np)
    return fit_mixture(z, np.ones(len(z)), num_components=_COMPONENTS, rng=rng)


def documented_centre(names: Sequence[str], priors: Priors) -> tuple[Floats, Floats]:
    """Return mean and standard deviation of coordinates under the documented priors, dims (coordinate,)."""
    sums = _prior_of_sums(priors).collapsed()
    moments = {name: (sums.means[0, i], np.sqrt(sums.covariances[0, i, i])) for i, name in enumerate(SUMS)}
    moments |= {name: (prior.mu, prior.sigma) for name, prior in priors.items()}
    mean, sd = np.array([moments[name] for name in names]).T
    return mean, sd


def complete(z: Floats, names: Sequence[str], priors: Priors, rng: np.random.Generator) -> dict[str, Floats]:
    r"""Draw the logarithms of every parameter given identified coordinates, as documented priors have them.

    How the sums are made up is drawn by sampling-importance-resampling. Candidates have P_max, k_B, k_S and
    the ratios :math:`a_0 g_8 / \tau_0` and :math:`a_1 / \tau_S` from the documented priors; they are weighted
    by the prior of the parameters that they lead to, of which none may be negative.

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
    known = {name: z[:, i, None] for i, name in enumerate(names)}
    slowdown = _log_slowdown(logs["k_B"], logs["k_S"], np)
    slope_ratio = logs["w_1"] - logs["P_max"] - logs["tau_S"]
    floor_ratio = logs["w_0"] - logs["P_max"] + slowdown - logs["tau_0"]
    ratios = {
        ("w_0", "tau_0"): (floor_ratio, slowdown - logs["P_max"]),
        ("w_1", "tau_S"): (slope_ratio, -logs["P_max"]),
    }
    log_a_1 = known["c"] - softplus(-slope_ratio, np)
    taken = np.exp(np.log(_FLOOR_STEP) + log_a_1 + slowdown - known["L_8"])  # by a_1, of the floor
    with np.errstate(divide="ignore", invalid="ignore"):
        left = known["L_8"] + np.log1p(-taken)
    made = {
        "w_0": left - softplus(-floor_ratio, np) - slowdown + logs["P_max"],
        "w_1": log_a_1 + logs["P_max"],
        "tau_0": left - softplus(floor_ratio, np),
        "tau_S": known["c"] - softplus(slope_ratio, np),
    }
    log_weight = known["L_8"] - left  # of the change of variables
    for name, value in made.items():
        log_weight = log_weight + log_normal(value, priors[name].mu, priors[name].sigma, np)
    for (above, below), (ratio, shift) in ratios.items():
        centre = priors[above].mu - priors[below].mu + shift
        log_weight = log_weight - log_normal(
            ratio, centre, np.hypot(priors[above].sigma, priors[below].sigma), np
        )
    score = np.where(taken < 1.0, log_weight + rng.gumbel(size=shape), -np.inf)
    chosen = score.argmax(axis=1)
    picked = {name: value[np.arange(len(z)), chosen] for name, value in (logs | made).items()}
    is_without = ~np.isfinite(score.max(axis=1))  # any candidate that could be
    if is_without.any():
        again = complete(z[is_without], names, priors, rng)
        for name, values in picked.items():
            values[is_without] = again[name]
    return picked | {name: z[:, i] for i, name in enumerate(names) if name not in SUMS}
