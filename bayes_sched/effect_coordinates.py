"""Coordinates in which effects are nearly standard normal, whatever the parameters of the equation are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bayes_sched.coordinates import softplus
from bayes_sched.effects import Effect, Floats

if TYPE_CHECKING:
    from bayes_sched.model import Coordinates

_LEAST = 0.01  # share of a latency taken to be left for what effects multiply, whatever the rest costs

type Split = Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[Any, Any]]
"""(draws of the parameters, columns of steps) -> what effects multiply, and the rest of the latency, ms."""


@dataclass(frozen=True)
class _Levels:
    """What the steps of an effect's levels with data say.

    Attributes
    ----------
    columns : dict of str to ndarray, dims (level,)
        The mean step of each level.
    latency_ms : ndarray, dims (level,)
        Its typical latency.
    error : ndarray, dims (level,)
        Standard error of that, relative to it, as far as its own steps tell.
    shares : dict of str to ndarray, dims (level, level of another effect)
        For each earlier effect, how the level's steps spread over its levels.
    relative_spread : ndarray, dims (level,)
        Standard deviation of its log factor in the population, relative to the effect's scale.
    """

    columns: dict[str, Floats]
    latency_ms: Floats
    error: Floats
    shares: dict[str, Floats]
    relative_spread: Floats


class EffectCoordinates:
    r"""Coordinates of a model with effects: those of its scalar parameters, and one for each level with data.

    Given the parameters, a level's own steps say that its log factor is about :math:`\hat r`, what takes the
    latency to their typical one, with standard error e: that of the latency, relative to the part of it that
    effects multiply. The population says 0 with standard deviation s.
    Sampled is the standardised departure from what both say together,

    .. math::  r = \frac{s^2}{s^2 + e^2} \hat r + w u, \qquad w^{-2} = s^{-2} + e^{-2},

    close to a standard normal whatever the parameters are: no funnel opens between r and s, and no ridge
    between r and the parameters of the equation. Papaspiliopoulos, Roberts and Sköld (2007), Statistical
    Science 22, data-based centring.

    Parameters
    ----------
    base : Coordinates
        Of the scalar parameters, every effect's scale among them.
    effects : sequence of Effect
    steps : DataFrame
        The steps of the fit.
    split : callable
        Of the model's latency without effects, what they multiply and the rest; for NumPy and PyTensor.
    """

    def __init__(
        self, base: Coordinates, effects: Sequence[Effect], steps: pd.DataFrame, split: Split
    ) -> None:
        self._base = base
        self._effects = tuple(effects)
        self._split = split
        self._levels = self._levels_of(steps)
        self._shared: dict[str, Any] = {}
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
        own = {f"{name}_error": levels.error for name, levels in self._levels.items()}
        own |= {f"{name}_latency_ms": levels.latency_ms for name, levels in self._levels.items()}
        return dict(self._base.data) | own

    def adapt(self, steps: pd.DataFrame) -> None:
        """Take the geometry from other latencies of the same steps; what was compiled follows."""
        self._base.adapt(steps)
        self._levels = self._levels_of(steps)
        for name, variable in self._shared.items():
            variable.set_value(self.data[name])

    def _levels_of(self, steps: pd.DataFrame) -> dict[str, _Levels]:
        found: dict[str, _Levels] = {}
        for number, effect in enumerate(self._effects):
            acted = steps[effect.acts_on(steps)]
            level = effect.level(acted[effect.column])
            groups = acted["latency_ms"].groupby(level)
            spread = (acted["latency_ms"] / groups.transform("median") - 1.0).abs().median()
            before = [other for other in self._effects[:number] if other.prefill == effect.prefill]
            shares = {
                other.name: pd.crosstab(level, other.level(acted[other.column]), normalize="index")
                for other in before
            }
            found[effect.name] = _Levels(
                columns={
                    str(c): acted[c].groupby(level).mean().to_numpy(float) for c in self._columns(steps)
                },
                latency_ms=groups.median().to_numpy(float),
                error=max(1.48 * float(spread), 1e-3) / np.sqrt(groups.size().to_numpy(float)),
                shares={name: table.to_numpy(float) for name, table in shares.items()},
                relative_spread=effect.relative_spread[effect.seen(steps)],
            )
        return found

    def _columns(self, steps: pd.DataFrame) -> list[str]:
        return [str(name) for name in steps.select_dtypes("number").columns if name != "latency_ms"]

    def _value(self, name: str, backend: Any) -> Any:
        """Return one of :attr:`data` that belongs to an effect, for PyTensor as a shared variable."""
        if backend is np:
            return self.data[name]
        if name not in self._shared:
            import pytensor

            self._shared[name] = pytensor.shared(self.data[name], name=name)
        return self._shared[name]

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
        parts = [self._base.from_logs(logs)]
        for effect in self._effects:
            given.setdefault(effect.name, np.zeros(len(self._levels[effect.name].error)))
            expected, width = self._expected(effect, given, np)
            parts.append((given[effect.name] - expected) / width)
        return np.concatenate(parts, axis=-1)

    def _expected(self, effect: Effect, logs: Mapping[str, Any], backend: Any) -> tuple[Any, Any]:
        """Return mean and standard deviation of the log factors given the parameters, dims (..., level)."""
        levels = self._levels[effect.name]
        names = [name for name in logs if name not in {other.name for other in self._effects}]
        theta = {name: backend.exp(logs[name])[..., None] for name in names}
        smooth, rest = self._split(theta, levels.columns)
        typical = self._value(f"{effect.name}_latency_ms", backend)
        share = (typical - rest) / typical
        left = _LEAST * (1.0 + softplus(share / _LEAST - 1.0, backend))
        own = backend.log(left) + backend.log(typical) - backend.log(smooth)
        for name, shares in levels.shares.items():
            own = own - logs[name] @ shares.T
        precision = backend.exp(-2.0 * logs[effect.scale.name])[..., None] / levels.relative_spread**2
        own_precision = (left / self._value(f"{effect.name}_error", backend)) ** 2
        variance = 1.0 / (precision + own_precision)
        return variance * own_precision * own, backend.sqrt(variance)
