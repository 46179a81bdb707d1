r"""Coordinates in which the posterior of the saturation equation is nearly a mixture of Gaussians.

Data see sums of the documented parameters, not the parameters. With :math:`a_0 = w_0 / P_{max}`,
:math:`a_1 = w_1 / P_{max}` and the saturation curve :math:`g = 1 / ((1-e^{-k_B B})(1-e^{-k_S S}))` the
equation is

.. math::  T = \tau_0 + \tau_B B + \tau_S S + a_0\, g + a_1 S g ,

three terms and two curves. Over the steps of a trace each curve is its projection on (1, B, S), which the
three terms can compensate, and a remainder that they cannot. Sampled instead of the eight parameters:

=====================  =====================================================================================
coordinate             what it is
=====================  =====================================================================================
``throughput``         P_max given a_0 and a_1: only these enter the equation, so log P_max given them is
                       normal a priori and independent of the data; this coordinate is its standard normal
``log_k_B, log_k_S``   logarithms of the saturation rates
``log_slope``          log of the slope in S that the trace sees, c = tau_S + (projection of a_1 S g on S)
``slope_share``        share of the curve in that slope
``level``              fixed latency that the trace sees, ms: tau_0 + (projections of both curves on 1)
``level_share``        share of a_0 g in what a_1 S g leaves of that level
``per_request``        latency per request that the trace sees: tau_B + (projections of both curves on B)
=====================  =====================================================================================

A share f lies between two regimes. Where the curve's remainder is far below the noise, or the other part of
the sum is, the priors rule, and they are normal in the logarithms: f should be an exponential at both ends.
Where the remainder is seen, the likelihood rules, and it is normal in f, with a standard deviation of 1/M if
the remainder at f = 1 stands M standard errors above nothing. Both hold for

.. math::  f(y) = \bigl[\operatorname{softplus}(y) - \operatorname{softplus}(y - M)\bigr] / M ,

which is the logistic function for M = 0. M depends on the saturation rates alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytensor
from scipy.optimize import nnls

from bayes_sched.arrays import Floats, Ints
from bayes_sched.model.equation import inverse_saturation, inverse_softplus, softplus
from bayes_sched.model.priors import Priors

MIN_GAIN = 1e-2  # of a curve's projection; positive on any trace that has steps of several sizes
_MIN_VISIBILITY = 1e-3
_MAX_REFERENCE_STEPS = 64
_LEAST_LATENCY = 0.01  # relative to the median
_LEAST_SHARE = 1e-3  # of a latency, that a start gives to each of its terms

type Terms = Callable[[pd.DataFrame], Mapping[str, Floats]]
"""Steps to what some parameters are multiplied by in their latency, dims (step,)."""


@dataclass
class Geometry:
    """What coordinates take from a trace, by name; in what is compiled, shared variables stand for it."""

    values: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)

    def take(self, values: Mapping[str, Any]) -> None:
        """Replace some values; what was compiled follows."""
        self.values |= values
        for name in values.keys() & self.shared.keys():
            self.shared[name].set_value(values[name])

    def at(self, name: str, backend: Any) -> Any:
        """Return a value, for PyTensor as a shared variable."""
        if backend is np:
            return self.values[name]
        if name not in self.shared:
            self.shared[name] = pytensor.shared(self.values[name], name=name)
        return self.shared[name]


class LogCoordinates:
    """The logarithms of the parameters themselves, for models that name no coordinates of their own.

    The search for modes covers each prior twice as wide as it is.
    """

    def __init__(self, priors: Priors) -> None:
        self._parameters = tuple(priors)
        self.names: tuple[str, ...] = tuple(f"log_{name}" for name in priors)
        self.scan_mean = np.array([prior.mu for prior in priors.values()])
        self.scan_scale = np.array([2.0 * prior.sigma for prior in priors.values()])
        self.data: dict[str, Any] = {}
        self.start: dict[str, float] = {}

    def adapt(self, steps: pd.DataFrame) -> None:
        """Do nothing: these coordinates are the same for every trace."""

    def to_logs(self, coordinates: Any, backend: Any) -> tuple[dict[str, Any], Any]:
        """Map coordinates (last axis) to log parameters; the log-Jacobian is 0."""
        logs = {name: coordinates[..., i] for i, name in enumerate(self._parameters)}
        return logs, backend.zeros_like(coordinates[..., 0])

    def from_logs(self, logs: Mapping[str, Any]) -> Floats:
        """Map log parameters to coordinates (last axis)."""
        return np.stack(np.broadcast_arrays(*(logs[name] for name in self._parameters)), axis=-1)


class SaturationCoordinates:
    """The bijection of the module's docstring, for the eight documented parameters and any others.

    The others, such as those of the noise, keep their logarithms. Latencies may have a `departure` from the
    equation for other reasons than noise, relative to them. `terms` are those in which the model is linear,
    if they come near to all of it: they give :attr:`start`, logarithms of parameters from which to look for
    the first mode in place of the priors' medians.
    """

    def __init__(
        self,
        steps: pd.DataFrame,
        priors: Priors,
        others: tuple[str, ...],
        *,
        departure: float = 0.0,
        terms: Terms | None = None,
    ) -> None:
        self._departure, self._terms, self.others = departure, terms, others
        self._geometry = Geometry()
        SaturationCoordinates.adapt(self, steps)
        self.names: tuple[str, ...] = (
            *("throughput", "log_k_B", "log_k_S", "log_slope", "slope_share"),
            *("level", "level_share", "per_request"),
            *(f"log_{name}" for name in others),
        )
        table = np.array([(priors[name].mu, priors[name].sigma ** -2) for name in ("P_max", "w_0", "w_1")])
        # Where to look for modes: the equation is linear in all but the rates, and a share says how much of a
        # curve is seen. Wider than the priors, because data move modes into their tails.
        scan = {"log_k_B": (priors["k_B"].mu, 2.0 * priors["k_B"].sigma)}
        scan |= {"log_k_S": (priors["k_S"].mu, 2.5 * priors["k_S"].sigma)}
        scan |= {"slope_share": (0.0, 5.0), "level_share": (0.0, 5.0)}
        self.scan_mean, self.scan_scale = np.array([scan.get(name, (0.0, 0.0)) for name in self.names]).T
        self._prior_means, precisions = table.T
        self._prior_weights = precisions / precisions.sum()
        self._throughput_sd = float(precisions.sum() ** -0.5)

    @property
    def data(self) -> dict[str, Any]:
        """Values of the shared variables in what was compiled, by name."""
        return self._geometry.values

    def adapt(self, steps: pd.DataFrame) -> None:
        """Take the geometry from other steps; what was compiled follows."""
        self.start = linear_start(steps, self._terms)
        reference = ReferenceSteps.from_steps(steps, departure=self._departure)
        self._geometry.take({f"reference_{key}": value for key, value in vars(reference).items()})

    def _reference(self, backend: Any) -> ReferenceSteps:
        names = ReferenceSteps.__dataclass_fields__
        return ReferenceSteps(**{name: self._geometry.at(f"reference_{name}", backend) for name in names})

    def to_logs(self, coordinates: Any, backend: Any) -> tuple[dict[str, Any], Any]:
        """Map coordinates (last axis) to log parameters and the log of |d logs / d coordinates|."""
        throughput, log_k_B, log_k_S, log_slope, y_slope, level, y_level, per_request = (
            coordinates[..., i] for i in range(8)
        )
        width = self._reference(backend).width
        fixed, work = self._curves(backend.exp(log_k_B), backend.exp(log_k_S), backend)

        log_f, log_rest, jacobian_f = share_of(y_slope, work.visibility, backend)
        log_a_1 = log_slope + log_f - backend.log(work.gain)
        a_1 = backend.exp(log_a_1)
        remaining = (level - a_1 * work.level) / width[0]
        log_remaining = backend.log(softplus(remaining, backend)) + backend.log(width[0])
        log_h, log_fixed, jacobian_h = share_of(y_level, fixed.visibility, backend)
        log_a_0 = log_remaining + log_h - backend.log(fixed.gain)
        own = (per_request - a_1 * work.per_request - backend.exp(log_a_0) * fixed.per_request) / width[1]
        log_own = backend.log(softplus(own, backend)) + backend.log(width[1])
        logs = {"k_B": log_k_B, "k_S": log_k_S} | self._work_logs(throughput, log_a_0, log_a_1)
        logs |= {"tau_0": log_remaining + log_fixed, "tau_B": log_own, "tau_S": log_slope + log_rest}
        logs |= {name: coordinates[..., 8 + i] for i, name in enumerate(self.others)}
        log_jacobian = (
            np.log(self._throughput_sd)
            + jacobian_f
            + jacobian_h
            - (softplus(-remaining, backend) + log_remaining)
            - (softplus(-own, backend) + log_own)
        )
        return logs, log_jacobian

    def from_logs(self, logs: Mapping[str, Any]) -> Floats:
        """Map log parameters to coordinates (last axis)."""
        width = self._reference(np).width
        throughput, log_a_0, log_a_1 = self._throughput(logs)
        a_0, a_1 = np.exp(log_a_0), np.exp(log_a_1)
        fixed, work = self._curves(np.exp(logs["k_B"]), np.exp(logs["k_S"]), np)
        log_curve, log_fixed = log_a_1 + np.log(work.gain), log_a_0 + np.log(fixed.gain)
        remaining = np.exp(np.logaddexp(log_fixed, logs["tau_0"])) / width[0]
        own = np.exp(logs["tau_B"]) / width[1]
        added = a_1 * work.per_request + a_0 * fixed.per_request
        coordinates = [
            throughput,
            logs["k_B"],
            logs["k_S"],
            np.logaddexp(log_curve, logs["tau_S"]),
            inverse_share(log_curve - logs["tau_S"], work.visibility),
            width[0] * inverse_softplus(remaining) + a_1 * work.level,
            inverse_share(log_fixed - logs["tau_0"], fixed.visibility),
            width[1] * inverse_softplus(own) + added,
            *(logs[name] for name in self.others),
        ]
        return np.stack(np.broadcast_arrays(*coordinates), axis=-1)

    def _work_logs(self, throughput: Any, log_a_0: Any, log_a_1: Any) -> dict[str, Any]:
        """Return the parameters that enter the equation as ratios alone."""
        log_P = self._throughput_mean(log_a_0, log_a_1) + self._throughput_sd * throughput
        return {"P_max": log_P, "w_0": log_a_0 + log_P, "w_1": log_a_1 + log_P}

    def _throughput(self, logs: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """Return the coordinate of P_max, log a_0 and log a_1."""
        log_P = np.asarray(logs["P_max"], float)
        log_a_0, log_a_1 = logs["w_0"] - log_P, logs["w_1"] - log_P
        return (log_P - self._throughput_mean(log_a_0, log_a_1)) / self._throughput_sd, log_a_0, log_a_1

    def _throughput_mean(self, log_a_0: Any, log_a_1: Any) -> Any:
        """Prior mean of log P_max given a_0 and a_1: a precision-weighted mean of three views of it."""
        weight, mean = self._prior_weights, self._prior_means
        return weight[0] * mean[0] + weight[1] * (mean[1] - log_a_0) + weight[2] * (mean[2] - log_a_1)

    def _curves(self, k_B: Any, k_S: Any, backend: Any) -> tuple[_Curve, _Curve]:
        """Return what the trace sees of the curves g and S g."""
        ref = self._reference(backend)
        g = inverse_saturation(ref.batch_size, ref.total_tokens, k_B=k_B[..., None], k_S=k_S[..., None])
        return self._curve(g, 0, backend), self._curve(ref.total_tokens * g, 2, backend)

    def _curve(self, curve: Any, summed: int, backend: Any) -> _Curve:
        """Return the projections of a curve that shares a sum with term number `summed`."""
        ref = self._reference(backend)
        projected = [(ref.projection[i] * curve).sum(axis=-1) for i in range(3)]
        remainder = curve - sum(p[..., None] * ref.terms[i] for i, p in enumerate(projected))
        crowding = 0.0 if summed == 0 else projected[0] / ref.width[0]
        error = backend.sqrt((ref.precision * remainder**2).sum(axis=-1) + crowding**2)
        gain = self._gain(curve, summed, backend)
        return _Curve(gain, projected[0], projected[1], ref.fit[summed] * error / gain + _MIN_VISIBILITY)

    def _gain(self, curve: Any, summed: int, backend: Any) -> Any:
        """Return what a curve adds to term number `summed`."""
        return backend.maximum((self._reference(backend).projection[summed] * curve).sum(axis=-1), MIN_GAIN)


@dataclass(frozen=True)
class _Curve:
    """A curve over a trace: its part in the sum it belongs to, its level and per-request projections, M."""

    gain: Any
    level: Any
    per_request: Any
    visibility: Any


def share_of(y: Any, visibility: Any, backend: Any) -> tuple[Any, Any, Any]:
    """Return log f(y), log (1 - f(y)) and log of d logit f / dy, accurate in both tails."""
    log_m = backend.log(visibility)
    log_complement = backend.log(-backend.expm1(-visibility))  # log (1 - e^-M)
    above, below = softplus(y - visibility, backend), softplus(-y, backend)
    log_f = backend.log(softplus(y + log_complement - above, backend)) - log_m
    log_rest = backend.log(softplus(visibility - y + log_complement - below, backend)) - log_m
    return log_f, log_rest, log_complement - log_m - above - below - log_f - log_rest


def inverse_share(logit: Floats, visibility: Floats) -> Floats:
    """Return y with f(y) = logistic(logit)."""
    seen = visibility * np.exp(-np.logaddexp(0.0, -logit))  # M f
    rest = visibility * np.exp(-np.logaddexp(0.0, logit))  # M (1 - f)
    return seen + np.log(-np.expm1(-seen)) - np.log(-np.expm1(-rest))


@dataclass(frozen=True)
class ReferenceSteps:
    """A few weighted steps, dims (reference,), that stand for a trace."""

    batch_size: Floats
    total_tokens: Floats
    terms: Floats  # 1, B and S, dims (term, reference)
    precision: Floats  # inverse of the squared standard error of a step's typical latency, 1/ms^2
    projection: Floats  # weighted least-squares projection of a curve on the terms, dims (term, reference)
    fit: Floats  # projection of the latencies, dims (term,), each at least a hundredth of the median latency
    width: Floats  # a tenth of the median latency, as a level, per request and per token, dims (term,)

    @classmethod
    def from_steps(cls, steps: pd.DataFrame, *, departure: float = 0.0) -> ReferenceSteps:
        """Summarise steps whose latencies depart so far from the equation, relative to them."""
        cells = steps.groupby(["total_tokens", "batch_size"])["latency_ms"].agg(["size", "median"])
        cells = cells.reset_index().astype(float)
        weight = cells["size"] / cells["median"] ** 2
        group = _groups(np.sqrt(weight.to_numpy()))
        total = weight.groupby(group).sum()
        mean = cells[["batch_size", "total_tokens", "median"]].mul(weight, axis=0).groupby(group).sum()
        batch_size, total_tokens, latency = mean.div(total, axis=0).to_numpy().T

        terms = np.stack([np.ones_like(batch_size), batch_size, total_tokens])
        gram = (terms * total.to_numpy()) @ terms.T
        gram += 1e-6 * np.diag(np.diag(gram))  # steps of one size only leave the three terms collinear
        projection = np.linalg.solve(gram, terms * total.to_numpy())
        fit = projection @ latency

        own = [np.ones(len(steps)), *(steps[name].to_numpy(float) for name in ("batch_size", "total_tokens"))]
        residual = steps["latency_ms"] - fit @ own
        relative_scale = max(1.48 * float((residual / steps["latency_ms"]).abs().median()), 1e-3)
        typical = np.array([1.0, *steps[["batch_size", "total_tokens"]].median().to_numpy(float)])
        width = 0.1 * float(steps["latency_ms"].median()) / typical
        # Of a group, total is the number of steps over the squared latency.
        precision = 1.0 / (relative_scale**2 / total.to_numpy() + (departure * latency) ** 2)
        fit = np.maximum(fit, 0.1 * width)
        return cls(batch_size, total_tokens, terms, precision, projection, fit, width)


def _groups(weight: Floats) -> Ints:
    """Assign consecutive cells to at most `_MAX_REFERENCE_STEPS` groups of about one weight."""
    if len(weight) <= _MAX_REFERENCE_STEPS:
        return np.arange(len(weight))
    position = np.cumsum(weight) / weight.sum() * _MAX_REFERENCE_STEPS
    return np.minimum(position, _MAX_REFERENCE_STEPS - 1).astype(np.int64)


def linear_start(steps: pd.DataFrame, terms: Terms | None) -> dict[str, float]:
    """Return logarithms of the parameters of `terms` by non-negative least squares of relative residuals.

    A parameter that comes out as 0 gets a thousandth of the median latency as its typical share.
    """
    if terms is None:
        return {}
    latency = steps["latency_ms"].to_numpy(float)
    table = {name: term / latency for name, term in terms(steps).items()}
    size = {name: float(np.mean(term)) for name, term in table.items()}
    used = [name for name in table if size[name] > 0.0]
    values, _ = nnls(np.stack([table[name] / size[name] for name in used], axis=1), np.ones(len(latency)))
    return {
        name: float(np.log(max(value, _LEAST_SHARE) / size[name]))
        for name, value in zip(used, values, strict=True)
    }


def with_positive_latencies(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the steps, none faster than a hundredth of the typical absolute latency.

    Absurd simulated servers have steps of negative latency, whose logarithm is no geometry to sample in.
    """
    latency = steps["latency_ms"]
    return steps.assign(latency_ms=latency.clip(lower=_LEAST_LATENCY * float(latency.abs().median())))
