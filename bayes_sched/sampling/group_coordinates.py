r"""Coordinates of models whose latencies depart from the equation by more than noise, level by level.

Departures blur what a trace says of the equation, so that its posterior is wide and reaches corners that
noise alone excludes. :class:`~bayes_sched.sampling.coordinates.SaturationCoordinates` bend there;
:class:`DepartureCoordinates` do not:

=====================  =====================================================================================
coordinate             what is different
=====================  =====================================================================================
``slope``              linear in the slope where that is above its standard error
``slope_share``,       the same with M at the prior's typical rates: most shares lie far in a tail, where an
``level_share``        M that moves with the rates would bend them
``level``              fixed latency :math:`F = \tau_0 + a_0 g` and :math:`G = a_1 s / (e^{k_S s} - 1)`, what
                       the curve of a_1 S adds at a step of few tokens s: steps of few tokens see F + G
``rate``               :math:`\log k_S + \log\frac{F}{2 F + G}`. As k_S falls G takes over until F is 0, and
                       the logarithm of k_S runs into a wall; here it is log F that goes on
``log_scale``,         of the noise's floor and its part relative to the latency: scale at the typical latency
``floor_share``        of a step that only decodes, and the floor's share of its square; ``log_prefill_scale``
                       and ``prefill_floor_share`` where the noise of steps with prefill has its own floor
=====================  =====================================================================================

Given the rest, k_S is the root of an equation in one unknown, which Newton's method finds in a few steps.
:class:`EffectCoordinates` add one coordinate for each level of a varying effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytensor

from bayes_sched.arrays import Floats
from bayes_sched.model.equation import inverse_saturation, inverse_softplus, softplus
from bayes_sched.model.likelihood import Effect
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import Coordinates
from bayes_sched.sampling.coordinates import (
    MIN_GAIN,
    Geometry,
    SaturationCoordinates,
    Terms,
    inverse_share,
    share_of,
)

_NEWTON_STEPS = 16
_LONGEST_STEP = 5.0
_LEAST_ELASTICITY = 0.02  # of G by k_S: 1 for slow saturation, more for fast
_NOISE = (
    {"sigma_rel": "log_scale", "sigma_floor": "floor_share"},
    {"sigma_prefill": "log_prefill_scale", "sigma_prefill_floor": "prefill_floor_share"},
)
"""The part of the noise relative to the latency, its floor, and their coordinates: decode only, prefill."""
_LEAST_LEFT = 0.01  # share of a latency taken to be left for what effects multiply, whatever the rest costs


class DepartureCoordinates(SaturationCoordinates):
    """The bijection of the module's docstring; parameters as of ``SaturationCoordinates``."""

    def __init__(
        self,
        steps: pd.DataFrame,
        priors: Priors,
        others: tuple[str, ...],
        *,
        departure: float,
        terms: Terms | None = None,
    ) -> None:
        super().__init__(steps, priors, others, departure=departure, terms=terms)
        self._rates = np.exp([priors["k_B"].mu, priors["k_S"].mu])
        given = {"log_k_S": "rate", "log_slope": "slope"}
        self._noise: dict[int, tuple[str, str]] = {}  # relative part and floor, by regime
        for regime, pair in enumerate(_NOISE):
            if {*pair} <= {*others}:
                relative, floor = pair
                self._noise[regime] = relative, floor
                given |= {f"log_{name}": coordinate for name, coordinate in pair.items()}
        self.names = tuple(given.get(name, name) for name in self.names)
        self._take_departures(steps)

    def adapt(self, steps: pd.DataFrame) -> None:
        """Take the geometry from other steps; what was compiled follows."""
        super().adapt(steps)
        self._take_departures(steps)

    def _take_departures(self, steps: pd.DataFrame) -> None:
        """Take M of both shares, few tokens; by regime the typical latency and M of the noise's share."""
        fixed, work = self._curves(self._rates[0], self._rates[1], np)
        few = float(self._reference(np).total_tokens.min())
        noise = [value for prefill in (False, True) for value in _noise_geometry(steps, prefill=prefill)]
        values = np.array([fixed.visibility, work.visibility, few, *noise], dtype=float)
        self._geometry.take({"departure_geometry": values})

    def _departures(self, backend: Any) -> Any:
        return self._geometry.at("departure_geometry", backend)

    def to_logs(self, coordinates: Any, backend: Any) -> tuple[dict[str, Any], Any]:
        """Map coordinates (last axis) to log parameters and the log of |d logs / d coordinates|."""
        throughput, log_k_B, rate, slope, y_slope, level, y_level, per_request = (
            coordinates[..., i] for i in range(8)
        )
        visibility_fixed, visibility_work = (self._departures(backend)[i] for i in range(2))
        reference = self._reference(backend)
        width, blur = reference.width, self._departure * reference.fit[2]
        k_B = backend.exp(log_k_B)

        log_multiple = backend.log(softplus(slope, backend))
        log_f, log_rest, jacobian_f = share_of(y_slope, visibility_work, backend)
        log_slope = log_multiple + backend.log(blur)
        log_total = backend.log(softplus(level / width[0], backend)) + backend.log(width[0])
        odds, log_k_S, elasticity = self._root(rate, k_B, log_slope + log_f, log_total, backend)
        log_p, log_left = -softplus(-odds, backend), -softplus(odds, backend)  # log F/(F+G), log G/(F+G)
        log_level = log_total + log_p

        fixed, work = self._curves(k_B, backend.exp(log_k_S), backend)
        log_a_1 = log_slope + log_f - backend.log(work.gain)
        log_h, log_fixed, jacobian_h = share_of(y_level, visibility_fixed, backend)
        log_a_0 = log_level + log_h - backend.log(fixed.gain)
        compensated = backend.exp(log_a_1) * work.per_request + backend.exp(log_a_0) * fixed.per_request
        own = (per_request - compensated) / width[1]
        log_own = backend.log(softplus(own, backend)) + backend.log(width[1])
        logs = {"k_B": log_k_B, "k_S": log_k_S} | self._work_logs(throughput, log_a_0, log_a_1)
        logs |= {"tau_0": log_level + log_fixed, "tau_B": log_own, "tau_S": log_slope + log_rest}
        others, jacobian_noise = self._noise_logs(coordinates, backend)
        p = backend.exp(log_p)
        log_jacobian = (
            np.log(self._throughput_sd)
            - softplus(-slope, backend)
            - log_multiple
            + jacobian_f
            + jacobian_h
            - softplus(-level / width[0], backend)
            - log_level
            - backend.log1p(elasticity * backend.exp(log_left - log_p) / (1.0 + p))
            - (softplus(-own, backend) + log_own)
            + jacobian_noise
        )
        return logs | others, log_jacobian

    def from_logs(self, logs: Mapping[str, Any]) -> Floats:
        """Map log parameters to coordinates (last axis)."""
        reference, log_k_S = self._reference(np), np.asarray(logs["k_S"], float)
        width, blur = reference.width, self._departure * reference.fit[2]
        visibility_fixed, visibility_work, few = self._departures(np)[:3]
        throughput, log_a_0, log_a_1 = self._throughput(logs)
        fixed, work = self._curves(np.exp(logs["k_B"]), np.exp(log_k_S), np)
        log_curve, log_fixed = log_a_1 + np.log(work.gain), log_a_0 + np.log(fixed.gain)
        log_level = np.logaddexp(log_fixed, logs["tau_0"])
        log_total = np.logaddexp(log_level, log_a_1 + _log_excess(np.exp(log_k_S) * few, few, np))
        log_p = log_level - log_total
        own = np.exp(logs["tau_B"]) / width[1]
        compensated = np.exp(log_a_1) * work.per_request + np.exp(log_a_0) * fixed.per_request
        coordinates = [
            throughput,
            logs["k_B"],
            log_k_S + log_p - np.log1p(np.exp(log_p)),
            inverse_softplus(np.exp(np.logaddexp(log_curve, logs["tau_S"])) / blur),
            inverse_share(log_curve - logs["tau_S"], visibility_work),
            width[0] * inverse_softplus(np.exp(log_total) / width[0]),
            inverse_share(log_fixed - logs["tau_0"], visibility_fixed),
            width[1] * inverse_softplus(own) + compensated,
            *self._noise_coordinates(logs),
        ]
        return np.stack(np.broadcast_arrays(*coordinates), axis=-1)

    def _root(
        self, rate: Any, k_B: Any, log_curve: Any, log_total: Any, backend: Any
    ) -> tuple[Any, Any, Any]:
        """Return log odds of F in F + G, log k_S and the elasticity of 1/G by k_S.

        The log odds are the root of log G - log (F + G) - log (1 - p), which is increasing and nearly linear.
        """

        def at(odds: Any) -> tuple[Any, Any, Any]:
            log_p = -softplus(-odds, backend)
            log_k_S = rate - log_p + backend.log1p(backend.exp(log_p))
            log_G, elasticity = self._excess(log_k_S, k_B, log_curve, backend)
            return log_k_S, log_G, elasticity

        def improved(odds: Any) -> Any:
            _, log_G, elasticity = at(odds)
            p = backend.exp(-softplus(-odds, backend))
            gradient = backend.maximum(elasticity, _LEAST_ELASTICITY) * (1.0 - p) / (1.0 + p) + p
            step = (log_G - log_total + softplus(odds, backend)) / gradient
            return odds - backend.clip(step, -_LONGEST_STEP, _LONGEST_STEP)

        odds = log_total - at(backend.zeros_like(rate) + 40.0)[1]
        if backend is np:
            for _ in range(_NEWTON_STEPS):
                odds = improved(odds)
        else:
            # At the root the derivative of a Newton step by where it starts is 0: the last one has all of it.
            odds = pytensor.scan(
                improved, outputs_info=odds, n_steps=_NEWTON_STEPS, truncate_gradient=1, return_updates=False
            )[-1]
        log_k_S, _, elasticity = at(odds)
        return odds, log_k_S, elasticity

    def _excess(self, log_k_S: Any, k_B: Any, log_curve: Any, backend: Any) -> tuple[Any, Any]:
        """Return log G and minus its derivative by log k_S, from the log of the curve's part of the slope."""
        ref, few = self._reference(backend), self._departures(backend)[2]
        k_S = backend.exp(log_k_S)
        g = inverse_saturation(ref.batch_size, ref.total_tokens, k_B=k_B[..., None], k_S=k_S[..., None])
        curve = ref.total_tokens * g
        x = k_S[..., None] * ref.total_tokens
        growth = -curve * x * backend.exp(-x) / -backend.expm1(-x)  # of the curve, by log k_S
        gain = self._gain(curve, 2, backend)
        gain_growth = (gain > MIN_GAIN) * (ref.projection[2] * growth).sum(axis=-1) / gain
        few_x = k_S * few
        elasticity = few_x / -backend.expm1(-few_x) + gain_growth
        return log_curve - backend.log(gain) + _log_excess(few_x, few, backend), elasticity

    def _noise_logs(self, coordinates: Any, backend: Any) -> tuple[dict[str, Any], Any]:
        found = {name: coordinates[..., 8 + i] for i, name in enumerate(self.others)}
        log_jacobian: Any = 0.0
        for regime, (relative, floor) in self._noise.items():
            typical, visibility = (self._departures(backend)[3 + 2 * regime + i] for i in range(2))
            log_scale = found[relative]
            log_floor, log_rest, jacobian = share_of(found[floor], visibility, backend)
            found[relative] = log_scale + 0.5 * log_rest - backend.log(typical)
            found[floor] = log_scale + 0.5 * log_floor
            log_jacobian = log_jacobian + jacobian - np.log(2.0)
        return found, log_jacobian

    def _noise_coordinates(self, logs: Mapping[str, Any]) -> list[Any]:
        values = {name: logs[name] for name in self.others}
        for regime, (relative, floor) in self._noise.items():
            typical, visibility = self._departures(np)[3 + 2 * regime : 5 + 2 * regime]
            log_relative, log_floor = np.asarray(logs[relative]) + np.log(typical), np.asarray(logs[floor])
            values[relative] = 0.5 * np.logaddexp(2.0 * log_relative, 2.0 * log_floor)
            values[floor] = inverse_share(2.0 * (log_floor - log_relative), visibility)
        return list(values.values())


def _noise_geometry(steps: pd.DataFrame, *, prefill: bool) -> tuple[float, float]:
    """Return the typical latency (ms) of a regime's steps and M of the share of their noise's floor.

    M is twice the standard errors of a variance's share, from steps whose latencies differ.
    """
    own = steps[(steps["num_prefill_reqs"] > 0) == prefill] if "num_prefill_reqs" in steps else steps
    latency = (steps if own.empty else own)["latency_ms"].to_numpy(float)
    typical = float(np.median(latency))
    seen = np.sqrt(len(latency) / 4.0) * np.std(np.minimum((latency / typical) ** 2, 4.0)) + 0.1
    return typical, float(seen)


def _log_excess(x: Any, few: Any, backend: Any) -> Any:
    """Return log of s / (e^x - 1), what a saturating step of s tokens seems to process beyond them."""
    return backend.log(few) - x - backend.log(-backend.expm1(-x))


type Split = Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[Any, Any]]
"""(draws of the parameters, columns of steps) -> what effects multiply, and the rest of the latency, ms."""


class EffectCoordinates:
    r"""Coordinates of a model with varying effects: those of its scalars, and one for each level with data.

    Given the parameters, a level's own steps say that its log factor is about :math:`\hat r`, what takes the
    latency to their typical one, with standard error e: that of the latency, relative to the part of it that
    effects multiply. The population says 0 with standard deviation s.
    Sampled is the standardised departure from what both say together,

    .. math::  r = \frac{s^2}{s^2 + e^2} \hat r + w u, \qquad w^{-2} = s^{-2} + e^{-2},

    close to a standard normal whatever the parameters are: no funnel opens between r and s, and no ridge
    between r and the parameters of the equation. Papaspiliopoulos, Roberts and Sköld (2007), Statistical
    Science 22, data-based centring.

    `base` are the coordinates of the scalar parameters, every effect's scale among them; `split` serves NumPy
    and PyTensor.
    """

    def __init__(
        self, base: Coordinates, effects: Sequence[Effect], steps: pd.DataFrame, split: Split
    ) -> None:
        self._base, self._effects, self._split = base, tuple(effects), split
        self._geometry = Geometry()
        self._take_levels(steps)
        labels = [
            f"{effect.name}[{effect.labels[level]}]" for effect in effects for level in effect.seen(steps)
        ]
        self.names: tuple[str, ...] = (*base.names, *labels)
        self.scan_mean = np.append(base.scan_mean, np.zeros(len(labels)))
        self.scan_scale = np.append(base.scan_scale, np.zeros(len(labels)))

    @property
    def num_scalars(self) -> int:
        """Number of leading coordinates, those of the scalar parameters."""
        return len(self._base.names)

    @property
    def start(self) -> Mapping[str, float]:
        """Logarithms of parameters at which to start looking."""
        return self._base.start

    @property
    def data(self) -> dict[str, Any]:
        """Values of the shared variables in what was compiled, by name."""
        return dict(self._base.data) | self._geometry.values

    def adapt(self, steps: pd.DataFrame) -> None:
        """Take the geometry from other latencies of the same steps; what was compiled follows."""
        self._base.adapt(steps)
        self._take_levels(steps)

    def _take_levels(self, steps: pd.DataFrame) -> None:
        self._levels = {
            effect.name: _Levels.of(effect, self._effects[:number], steps)
            for number, effect in enumerate(self._effects)
        }
        for name, levels in self._levels.items():
            self._geometry.take({f"{name}_error": levels.error, f"{name}_latency_ms": levels.latency_ms})

    def to_logs(self, coordinates: Any, backend: Any) -> tuple[dict[str, Any], Any]:
        """Map coordinates (last axis) to log parameters, and log factors of the levels with data."""
        logs, log_jacobian = self._base.to_logs(coordinates, backend)
        start = len(self._base.names)
        for effect in self._effects:
            end = start + len(self._levels[effect.name].error)
            expected, width = self._expected(effect, logs, backend)
            logs[effect.name] = expected + width * coordinates[..., start:end]
            log_jacobian = log_jacobian + backend.log(width).sum(axis=-1)
            start = end
        return logs, log_jacobian

    def from_logs(self, logs: Mapping[str, Any]) -> Floats:
        """Map log parameters, and log factors (0 where they are not given), to coordinates (last axis)."""
        given = dict(logs)
        found = [self._base.from_logs(logs)]
        for effect in self._effects:
            given.setdefault(effect.name, np.zeros(len(self._levels[effect.name].error)))
            expected, width = self._expected(effect, given, np)
            found.append((given[effect.name] - expected) / width)
        return np.concatenate(found, axis=-1)

    def _expected(self, effect: Effect, logs: Mapping[str, Any], backend: Any) -> tuple[Any, Any]:
        """Return mean and standard deviation of the log factors given the parameters, dims (..., level)."""
        levels = self._levels[effect.name]
        names = [name for name in logs if name not in {other.name for other in self._effects}]
        theta = {name: backend.exp(logs[name])[..., None] for name in names}
        smooth, rest = self._split(theta, levels.columns)
        typical = self._geometry.at(f"{effect.name}_latency_ms", backend)
        share = (typical - rest) / typical
        left = _LEAST_LEFT * (1.0 + softplus(share / _LEAST_LEFT - 1.0, backend))
        own = backend.log(left) + backend.log(typical) - backend.log(smooth)
        for name, shares in levels.shares.items():
            own = own - logs[name] @ shares.T
        precision = backend.exp(-2.0 * logs[effect.scale.name])[..., None] / levels.relative_spread**2
        own_precision = (left / self._geometry.at(f"{effect.name}_error", backend)) ** 2
        variance = 1.0 / (precision + own_precision)
        return variance * own_precision * own, backend.sqrt(variance)


@dataclass(frozen=True)
class _Levels:
    """What the steps of an effect's levels with data say, dims (level,)."""

    columns: dict[str, Floats]  # the mean step
    latency_ms: Floats  # its typical latency
    error: Floats  # standard error of that, relative to it, as far as the level's own steps tell
    shares: dict[str, Floats]  # how its steps spread over the levels of each earlier effect, (level, other)
    relative_spread: Floats  # of its log factor in the population, relative to the effect's scale

    @classmethod
    def of(cls, effect: Effect, earlier: Sequence[Effect], steps: pd.DataFrame) -> _Levels:
        acted = steps[effect.acts_on(steps)]
        level = effect.level(acted[effect.column])
        groups = acted["latency_ms"].groupby(level)
        spread = (acted["latency_ms"] / groups.transform("median") - 1.0).abs().median()
        columns = [name for name in steps.select_dtypes("number").columns if name != "latency_ms"]
        shares = {
            other.name: pd.crosstab(level, other.level(acted[other.column]), normalize="index").to_numpy(
                float
            )
            for other in earlier
            if other.prefill == effect.prefill
        }
        return cls(
            columns={str(name): acted[name].groupby(level).mean().to_numpy(float) for name in columns},
            latency_ms=groups.median().to_numpy(float),
            error=max(1.48 * float(spread), 1e-3) / np.sqrt(groups.size().to_numpy(float)),
            shares=shares,
            relative_spread=effect.relative_spread[effect.seen(steps)],
        )
