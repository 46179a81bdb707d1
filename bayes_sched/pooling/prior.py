r"""The prior of a server that belongs to a population: what other servers tell about it.

What data identify of a server, z (:func:`identified`), follows the posterior predictive distribution of the
population, a mixture over its draws h,

.. math::  p(z) = \frac{1}{H} \sum_h \prod_k \mathrm{Normal}(z_k \mid \mu_{hk}, \omega_{hk}),

and given z the parameters are distributed as the documented priors :math:`p_0` have them. A server may be
unlike any before, so that a share :math:`\epsilon` is left to the documented priors (a robust
meta-analytic-predictive prior: Schmidli, Gsteiger, Roychoudhury, O'Hagan, Spiegelhalter and Neuenschwander
2014, doi:10.1111/biom.12242):

.. math::

    p(\theta) = p_0(\theta) \left[ (1 - \epsilon) \frac{p(z(\theta))}{p_0(z(\theta))} + \epsilon \right].

A `backend` is :mod:`numpy` or :mod:`pytensor.tensor`; `logs` are logarithms of every parameter by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import logsumexp

from bayes_sched.arrays import Floats
from bayes_sched.errors import InputError
from bayes_sched.model.equation import softplus
from bayes_sched.model.priors import Priors
from bayes_sched.sampling.mixture import GaussianMixture, fit_mixture

SUMS = {
    "L_8": ("floor of a step of eight decodes", "ms"),
    "c": ("slope for large S", "ms/token"),
}
"""The identified sums: what they mean, and their units."""
DOCUMENTED_SHARE = 0.2
"""Share of a new trace's prior that is left to the documented priors."""

_EQUATION = ("P_max", "k_B", "k_S", "w_0", "w_1", "tau_0", "tau_B", "tau_S")
_FLOOR_STEP = 8.0  # requests and tokens
_LOG_2PI = float(np.log(2.0 * np.pi))
_PRIOR_DRAWS, _COMPONENTS = 20_000, 8  # of the mixture that stands for the documented prior of the sums
_CANDIDATES = 200  # ways to make up a server's sums, of which one is drawn


@dataclass(frozen=True, eq=False, kw_only=True)
class PopulationPrior:
    """What is known of a server before its own trace is seen."""

    names: tuple[str, ...]  # the coordinates that servers share
    mean: Floats  # dims (component, coordinate): of the logarithm of each coordinate
    sd: Floats  # the same
    text: str  # whose prior it is, in words
    documented_share: float = DOCUMENTED_SHARE  # share that is left to the documented priors

    def check(self, priors: Priors) -> None:
        """Refuse a model with these priors that lacks a coordinate of the population."""
        missing = sorted(set(self.names) - set(identified_names(priors)))
        if missing:
            names = ", ".join(missing)
            raise InputError(
                f"the pool tells of {names}, which this model lacks: use the pool's model and noise"
            )

    def log_ratio(self, logs: Mapping[str, Any], priors: Priors, backend: Any) -> Any:
        """Return the log of this prior's density over that of the documented `priors`, dims of `logs`."""
        z = identified(logs, self.names, backend)
        each = log_normal(z[..., None, :], self.mean, self.sd, backend).sum(axis=-1)
        mixture = logsumexp(each, axis=-1) if backend is np else backend.logsumexp(each, axis=-1)
        ratio = mixture - np.log(len(self.mean)) - log_documented(z, self.names, priors, backend)
        if self.documented_share == 0.0:
            return ratio
        share = np.log(self.documented_share)
        return backend.logaddexp(np.log1p(-self.documented_share) + ratio, share)

    def draw(self, priors: Priors, size: int, rng: np.random.Generator) -> dict[str, Floats]:
        """Draw logarithms of every parameter, dims (size,)."""
        component = np.arange(size) % len(self.mean)
        z = rng.normal(self.mean[component], self.sd[component])
        drawn = complete(z, self.names, priors, rng)
        is_documented = rng.uniform(size=size) < self.documented_share
        return {
            name: np.where(is_documented, rng.normal(prior.mu, prior.sigma, size), drawn[name])
            for name, prior in priors.items()
        }


def identified_names(priors: Priors) -> tuple[str, ...]:
    """Return the names of all coordinates that data may identify: sums, latency per request, further ones."""
    return (*SUMS, "tau_B", *(name for name in priors if name not in _EQUATION))


def identified(logs: Mapping[str, Any], names: Sequence[str], backend: Any) -> Any:
    """Return the logarithms of the coordinates `names`, among :func:`identified_names`, last axis."""
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
    total = None
    for k in range(sums.num_components):
        offset = backend.stack([z[..., names.index(name)] for name in SUMS], axis=-1) - sums.means[k]
        white = offset @ sums.inverse_cholesky[k].T
        constant = np.log(sums.weights[k]) + np.log(np.diag(sums.inverse_cholesky[k])).sum() - _LOG_2PI
        one = constant - 0.5 * (white**2).sum(axis=-1)
        total = one if total is None else backend.logaddexp(total, one)
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
    r"""Draw the logarithms of every parameter, dims (draw,), given those of identified coordinates.

    `z` has dims (draw, coordinate); given it, the parameters are as the documented priors have them. How the
    sums are made up is drawn by sampling-importance-resampling. Candidates have P_max, k_B, k_S and the
    ratios :math:`a_0 g_8 / \tau_0` and :math:`a_1 / \tau_S` from the documented priors; they are weighted by
    the prior of the parameters that they lead to, of which none may be negative.
    """
    shape = (len(z), _CANDIDATES)
    logs = {name: rng.normal(prior.mu, prior.sigma, shape) for name, prior in priors.items()}
    known = {name: z[:, i, None] for i, name in enumerate(names)}
    slowdown = _log_slowdown(logs["k_B"], logs["k_S"], np)
    slope_ratio = logs["w_1"] - logs["P_max"] - logs["tau_S"]
    floor_ratio = logs["w_0"] - logs["P_max"] + slowdown - logs["tau_0"]
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
    for above, below, ratio, shift in (
        ("w_0", "tau_0", floor_ratio, slowdown - logs["P_max"]),
        ("w_1", "tau_S", slope_ratio, -logs["P_max"]),
    ):
        centre = priors[above].mu - priors[below].mu + shift
        width = np.hypot(priors[above].sigma, priors[below].sigma)
        log_weight = log_weight - log_normal(ratio, centre, width, np)
    score = np.where(taken < 1.0, log_weight + rng.gumbel(size=shape), -np.inf)
    chosen = score.argmax(axis=1)
    picked = {name: value[np.arange(len(z)), chosen] for name, value in (logs | made).items()}
    is_without = ~np.isfinite(score.max(axis=1))  # any candidate that could be
    if is_without.any():
        again = complete(z[is_without], names, priors, rng)
        for name, values in picked.items():
            values[is_without] = again[name]
    return picked | {name: z[:, i] for i, name in enumerate(names) if name not in SUMS}
