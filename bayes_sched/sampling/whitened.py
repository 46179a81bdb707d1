r"""Coordinates of models with factors level by level, whitened by the curvature at the mode.

Data say how long the steps of a level take, or how noisy they are; they hardly say how the equation and the
level's log factor share in that. With m the log that the data of level j alone ask for, known to within
:math:`e`, and E what its factor multiplies, the sampled coordinate of a level is u,

.. math::  r = \frac{s^2}{s^2 + e^2} \bigl(m - \log E(\theta)\bigr) + w u, \qquad w^{-2} = s^{-2} + e^{-2},

the standardised departure from what data and population say together (data-based centring; Papaspiliopoulos,
Roberts and Sköld, 2007, Statistical Science 22). Where the levels of one effect lie within those of another,
E has the other's factor in it. The equation is tied to the levels by the population alone: its ridges are as
wide as s, not as narrow as noise, and no funnel opens at small s.

The prior rules a term such as :math:`\tau_R`, normal in its logarithm, as long as it is too small to be seen;
then the likelihood does, normal in the term itself. Both hold for y with :math:`\tau = b\,
\operatorname{softplus}(y)`, if the data begin to see the term at b.

What is left is nearly one Gaussian. Its mode is found by a few climbs, where the curvature says what m, e and
b are and whitens all coordinates together (:func:`explore_levels`). None of this changes the posterior.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import logsumexp

from bayes_sched.arrays import Floats, Ints
from bayes_sched.model.equation import inverse_softplus, softplus
from bayes_sched.model.likelihood import Effect
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import Coordinates
from bayes_sched.sampling.components import Density
from bayes_sched.sampling.coordinates import Geometry
from bayes_sched.sampling.exploration import Exploration
from bayes_sched.sampling.mixture import GaussianMixture

type Multiplied = Callable[[Effect, Mapping[str, Any], Mapping[str, Any]], Any]
"""(effect, draws of the parameters, columns of steps) -> what the effect's factors multiply."""

_NEGLIGIBLE = 8.0  # nats by which the evidence of a mode may fall short of the best one's
_LEAST_INFORMATION = 1e-2  # that data have on a level's log factor, relative to what its population has
_LEAST_CURVATURE = 0.5  # of the log density, whose coordinates are of the size of 1
_MAX_ROUNDS, _MAX_ITERATIONS = 12, 200  # of a climb, and of BFGS in each round
_TOLERANCE = 0.01  # of the gradient in whitened coordinates
_SETTLED = 0.1  # standard deviations that a last round may move
_STEP = 1e-3  # of the differences that give the curvature


class LevelCoordinates:
    """The bijection of the module's docstring.

    `base` are the coordinates of the scalar parameters, every effect's scale among them; of those that keep
    their logarithm, terms with a start are bent. `multiplied` serves NumPy and PyTensor.
    """

    def __init__(
        self,
        base: Coordinates,
        effects: Sequence[Effect],
        steps: pd.DataFrame,
        multiplied: Multiplied,
    ) -> None:
        self._base, self._effects, self._multiplied = base, tuple(effects), multiplied
        self._geometry = Geometry()
        self._bent = tuple(name for name in base.start if f"log_{name}" in base.names)
        self.adapt(steps)
        bent = {f"log_{name}": f"bent_{name}" for name in self._bent}
        labels = [f"{e.name}[{e.labels[level]}]" for e in self._effects for level in e.seen(steps)]
        self.names: tuple[str, ...] = (*(bent.get(name, name) for name in base.names), *labels)
        self.scan_mean, self.scan_scale = (
            np.append(x, np.zeros(len(labels))) for x in (base.scan_mean, base.scan_scale)
        )

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
        self._geometry.take({"log_bends": np.array([self._base.start[name] for name in self._bent])})
        latency = steps["latency_ms"]
        numeric = steps.select_dtypes("number").drop(columns="latency_ms")
        self._columns: dict[str, dict[str, Floats]] = {}
        self._slices: dict[str, slice] = {}
        self._containing: dict[str, dict[str, Ints]] = {}
        end = self.num_scalars
        for number, effect in enumerate(self._effects):
            acted = steps[effect.acts_on(steps)]
            level, seen = effect.level(acted[effect.column]), effect.seen(steps)
            groups = acted["latency_ms"].groupby(level)
            medians = groups.median().reindex(seen, fill_value=latency.median()).to_numpy(float)
            count = groups.size().reindex(seen, fill_value=0).to_numpy(float)
            deviation = (acted["latency_ms"] / groups.transform("median") - 1.0).abs().median()
            spread = np.fmax(1.48 * deviation, 1e-3)
            means = numeric.loc[acted.index].groupby(level).mean().reindex(seen).fillna(numeric.mean())
            self._columns[effect.name] = {str(name): means[name].to_numpy(float) for name in means}
            self._containing[effect.name] = {
                other.name: np.searchsorted(other.seen(steps), other.level(means[effect.column]))
                for other in self._effects[:number]
                if (other.column, other.prefill, other.noise) == (effect.column, effect.prefill, effect.noise)
            }
            self._slices[effect.name] = slice(end, end := end + len(seen))
            wanted = np.full(len(seen), np.log(spread)) if effect.noise else np.log(medians)
            information = count if effect.noise else count / spread**2
            self._geometry.take({f"{effect.name}_wanted": wanted, f"{effect.name}_information": information})

    def to_logs(self, coordinates: Any, backend: Any) -> tuple[dict[str, Any], Any]:
        """Map coordinates (last axis) to log parameters, and log factors of the levels with data."""
        logs, log_jacobian = self._base.to_logs(coordinates, backend)
        for i, name in enumerate(self._bent):
            log_multiple = backend.log(softplus(logs[name], backend))
            log_jacobian = log_jacobian - softplus(-logs[name], backend) - log_multiple
            logs[name] = log_multiple + self._geometry.at("log_bends", backend)[i]
        for effect in self._effects:
            expected, width = self._expected(effect, logs, backend)
            logs[effect.name] = expected + width * coordinates[..., self._slices[effect.name]]
            log_jacobian = log_jacobian + backend.log(width).sum(axis=-1)
        return logs, log_jacobian

    def from_logs(self, logs: Mapping[str, Any]) -> Floats:
        """Map log parameters and log factors to coordinates (last axis).

        Factors that are not given are those that data and population ask for together.
        """
        bends = zip(self._bent, self._geometry.at("log_bends", np), strict=True)
        bent = {name: inverse_softplus(np.exp(logs[name] - bend)) for name, bend in bends}
        given, found = dict(logs), [self._base.from_logs({**logs, **bent})]
        for effect in self._effects:
            expected, width = self._expected(effect, given, np)
            found.append((np.asarray(given.setdefault(effect.name, expected)) - expected) / width)
        return np.concatenate(found, axis=-1)

    def centre(self, mode: Floats, covariance: Floats) -> None:
        """Take the geometry from the mode, dims (coordinate,), and from the Gaussian of its curvature."""
        logs, _ = self.to_logs(mode, np)
        self._bend(mode, logs, covariance)
        curvature = np.linalg.inv(covariance)
        for effect in self._effects:
            own = self._slices[effect.name]
            precision, width = self._precision(effect, logs, np), self._expected(effect, logs, np)[1]
            known = np.diag(curvature)[own] / width**2 - precision
            information = np.maximum(known, _LEAST_INFORMATION * precision)
            wanted = self._log_multiplied(effect, logs, np) + logs[effect.name] * (
                1.0 + precision / information
            )
            self._geometry.take({f"{effect.name}_wanted": wanted, f"{effect.name}_information": information})

    def _bend(self, mode: Floats, logs: Mapping[str, Any], covariance: Floats) -> None:
        """Let terms turn from logarithms to linear where the data, and not the prior, begin to rule them."""
        error = np.sqrt(np.diag(covariance).clip(0.0))
        found = []
        for name in self._bent:
            position = self.names.index(f"bent_{name}")
            y = mode[position]
            slope = np.exp(-softplus(-y, np)) / softplus(y, np)
            found.append(logs[name] + np.log(np.minimum(slope * error[position], 1.0)))
        self._geometry.take({"log_bends": np.array(found)})

    def _log_multiplied(self, effect: Effect, logs: Mapping[str, Any], backend: Any) -> Any:
        """Return the log of what an effect multiplies, dims (..., level)."""
        names = {other.name for other in self._effects}
        theta = {name: backend.exp(value)[..., None] for name, value in logs.items() if name not in names}
        base = backend.log(self._multiplied(effect, theta, self._columns[effect.name]))
        for other, position in self._containing[effect.name].items():
            base = base + logs[other][..., position]
        return base

    def _precision(self, effect: Effect, logs: Mapping[str, Any], backend: Any) -> Any:
        """Return the precision of log factors in the population, dims (..., level)."""
        return backend.exp(-2.0 * logs[effect.scale.name])[..., None]

    def _expected(self, effect: Effect, logs: Mapping[str, Any], backend: Any) -> tuple[Any, Any]:
        """Return mean and standard deviation of the log factors given the parameters, dims (..., level)."""
        wanted, information = (
            self._geometry.at(f"{effect.name}_{what}", backend) for what in ("wanted", "information")
        )
        variance = 1.0 / (self._precision(effect, logs, backend) + information)
        expected = variance * information * (wanted - self._log_multiplied(effect, logs, backend))
        return expected, backend.sqrt(variance)


@dataclass(frozen=True)
class Mode:
    """A mode of a density, and the Gaussian that has its curvature."""

    point: Floats
    covariance: Floats
    log_evidence: float  # of that Gaussian at the density's height, up to a constant

    def resembles(self, other: Mode) -> bool:
        """Return whether the other mode is within one standard deviation of this one."""
        distance = self.point - other.point
        return bool(distance @ np.linalg.solve(self.covariance, distance) < 1.0)


def explore_levels(density: Density, coordinates: LevelCoordinates, priors: Priors) -> Exploration:
    """Return the Gaussians at the modes of a posterior, of one as a rule, and centre the coordinates there.

    Climbs start at the priors' medians and one standard deviation above and below, but for the parameters
    that the coordinates know a start for.
    """
    before = density.num_evaluations
    shifted = ({n: np.float64(p.mu + k * p.sigma) for n, p in priors.items()} for k in (0.0, 1.0, -1.0))
    starts = [coordinates.from_logs(logs | dict(coordinates.start)) for logs in shifted]
    found: list[Mode] = []
    for mode in sorted((find_mode(density, start) for start in starts), key=lambda mode: -mode.log_evidence):
        if not any(mode.resembles(other) for other in found):
            found.append(mode)
    found = [mode for mode in found if mode.log_evidence > found[0].log_evidence - _NEGLIGIBLE]
    points = [coordinates.to_logs(mode.point, np)[0] for mode in found]
    coordinates.centre(found[0].point, found[0].covariance)
    density.rebind()
    found = [find_mode(density, coordinates.from_logs(logs)) for logs in points]
    evidence = np.array([mode.log_evidence for mode in found])
    weights = np.exp(evidence - logsumexp(evidence))
    mixture = GaussianMixture(
        weights, np.array([mode.point for mode in found]), np.array([mode.covariance for mode in found])
    )
    return Exploration(mixture, len(found), 0.0, density.num_evaluations - before)


def find_mode(density: Density, start: Floats) -> Mode:
    """Climb from `start` by BFGS, whitened anew by the curvature until it moves no more."""
    point = start
    for _ in range(_MAX_ROUNDS):
        values, vectors = np.linalg.eigh(curvature(density, point))
        root = vectors / np.sqrt(np.maximum(np.abs(values), _LEAST_CURVATURE))
        found = _climb(density, point, root)
        point = point + root @ found.x
        if np.linalg.norm(found.x) < _SETTLED:
            break
    covariance = root @ root.T
    return Mode(point, covariance, -float(found.fun) + 0.5 * float(np.linalg.slogdet(covariance)[1]))


def _climb(density: Density, origin: Floats, root: Floats) -> Any:
    """Climb by BFGS in the coordinates z of origin + root z."""

    def negative(z: Floats) -> tuple[float, Floats]:
        value, gradient = density(origin + root @ z)
        return -value, -root.T @ gradient

    options = {"maxiter": _MAX_ITERATIONS, "gtol": _TOLERANCE}
    return minimize(negative, np.zeros(density.dim), jac=True, method="BFGS", options=options)


def curvature(density: Density, point: Floats) -> Floats:
    """Return minus the second derivatives of a log density, by differences of its gradient."""
    steps = _STEP * np.eye(density.dim)
    rows = [(density(point - step)[1] - density(point + step)[1]) / (2.0 * _STEP) for step in steps]
    hessian = np.array(rows)
    return 0.5 * (hessian + hessian.T)
