r"""What a step does, given draws of the parameters: mixtures of Student-t distributions, one for each draw.

The posterior predictive distribution of a step's latency is

.. math:: F(x) = \frac{1}{D} \sum_d F_{\nu_d}\!\left(\frac{x - \mu_d}{\sigma_d}\right),

with :math:`F_\nu` the Student-t distribution function. Quantiles are roots of it, not sample quantiles, so
they carry no noise of their own. Latencies are not negative: the little mass that a component may have below
0 counts as 0.

Shapes are named as dims: ``draw`` are components, ``cell`` are steps. Everything is in ms.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import special

from bayes_sched.errors import InputError

type Floats = NDArray[np.float64]

# A component's table: log survival against v = asinh(z), in which a power-law tail is a straight line.
_TABLE_STEP = 1.0 / 64.0
_NUM_NODES = 489
_TABLE_END = (_NUM_NODES - 1) * _TABLE_STEP  # 7.625: z about 1,000
_SMALLEST = 1e-290

_COARSE = 16
_MAX_ITERATIONS = 200
_NEWTON_TOLERANCE = 1e-3  # of the scale; the error after such a step is about its square
_BRACKET_TOLERANCE = 1e-12


class StudentTMixture:
    """Equally weighted Student-t distributions that differ in location, scale and degrees of freedom.

    The distribution function of every component is tabulated once (cubic Hermite interpolation of the
    logarithm of its tail, relative error below 1e-7): ten times faster than evaluating it, which is what the
    time goes to.

    Parameters
    ----------
    nu : ndarray, dims (draw,)
        Degrees of freedom of each component, positive.
    """

    def __init__(self, nu: Floats) -> None:
        self.nu: Floats = np.asarray(nu, dtype=np.float64)
        half = 0.5 * self.nu
        self._log_norm = special.gammaln(half + 0.5) - special.gammaln(half) - 0.5 * np.log(np.pi * self.nu)
        nodes = np.arange(_NUM_NODES) * _TABLE_STEP
        z = np.broadcast_to(np.sinh(nodes), (len(self.nu), _NUM_NODES))
        survival = special.stdtr(self.nu[:, None], -z)
        is_tiny = survival < _SMALLEST
        survival = np.where(is_tiny, _SMALLEST, survival)
        slope = -self._density(z, slice(None)) / survival * np.cosh(nodes)
        self._log_survival: Floats = np.log(survival)
        self._slope: Floats = np.where(is_tiny, 0.0, slope) * _TABLE_STEP

    def cdf(self, mean: Floats, scale: Floats, x: Floats) -> Floats:
        """Return P(latency <= x) of each step.

        Parameters
        ----------
        mean, scale : ndarray, dims (draw, cell)
            Location and scale of each component, ms.
        x : ndarray, dims (cell,)
            Latency in ms.

        Returns
        -------
        ndarray, dims (cell,)
            0 where `x` is negative.
        """
        probability = self._components((x - mean) / scale, slice(None)).mean(axis=0)
        return cast("Floats", np.where(x < 0.0, 0.0, probability))

    def quantile(self, mean: Floats, scale: Floats, q: float) -> Floats:
        """Return the latency that a step stays below with probability `q`.

        Newton's method within a bracket: a quantile of a mixture lies between the smallest and the largest
        quantile of its components.

        Parameters
        ----------
        mean, scale : ndarray, dims (draw, cell)
            Location and scale of each component, ms.
        q : float
            Probability, 0 < q < 1.

        Returns
        -------
        ndarray, dims (cell,)
            ms, at least 0.
        """
        components = component_quantile(mean, scale, self.nu[:, None], check_probability(q))
        start = components.mean(axis=0)
        if len(self.nu) >= _COARSE * _COARSE:
            # Every 16th component brings the start so close that two steps with all of them are enough.
            few = slice(_COARSE // 2, None, _COARSE)
            start = self._solve(mean[few], scale[few], q, start, components[few], rows=few)
        return np.maximum(self._solve(mean, scale, q, start, components, rows=slice(None)), 0.0)

    def _solve(
        self, mean: Floats, scale: Floats, q: float, start: Floats, components: Floats, *, rows: slice
    ) -> Floats:
        """Return the roots of the distribution function minus `q` for the components `rows`, dims (cell,)."""
        low, high = components.min(axis=0), components.max(axis=0)
        result = np.clip(start, low, high)
        active = np.arange(result.size)
        for _ in range(_MAX_ITERATIONS):
            x = result[active]
            typical = 1.0 / (1.0 / scale).mean(axis=0)  # the narrow components decide where the quantile is
            z = (x - mean) / scale
            excess = self._components(z, rows).mean(axis=0) - q
            density = (self._density(z, rows) / scale).mean(axis=0)
            low, high = np.where(excess <= 0.0, x, low), np.where(excess >= 0.0, x, high)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                following = x - excess / density
            is_newton = (following >= low) & (following <= high)
            following = np.where(is_newton, following, 0.5 * (low + high))
            is_done = is_newton & (np.abs(following - x) <= _NEWTON_TOLERANCE * typical)
            is_done |= (high - low) <= _BRACKET_TOLERANCE * (typical + np.abs(x))
            result[active] = following
            if is_done.all():
                break
            keep = ~is_done
            active, low, high = active[keep], low[keep], high[keep]
            if is_done.any():
                mean, scale = mean[:, keep], scale[:, keep]
        return result

    def _density(self, z: Floats, rows: slice) -> Floats:
        """Return the standard density of the components `rows` at `z`, dims (draw, cell)."""
        nu = self.nu[rows, None]
        return cast("Floats", np.exp(self._log_norm[rows, None] - 0.5 * (nu + 1.0) * np.log1p(z * z / nu)))

    def _components(self, z: Floats, rows: slice) -> Floats:
        """Return the standard distribution function of the components `rows` at `z`, dims (draw, cell)."""
        v = np.arcsinh(np.abs(z))
        position = np.minimum(v, _TABLE_END) * (1.0 / _TABLE_STEP)
        index = np.minimum(position.astype(np.int64), _NUM_NODES - 2)
        t = position - index
        index += np.arange(len(self.nu))[rows, None] * _NUM_NODES
        left, slope_left = self._log_survival.take(index), self._slope.take(index)
        index += 1
        right, slope_right = self._log_survival.take(index), self._slope.take(index)
        rise = right - left
        rest = 1.0 - t
        log_tail = left + t * (rise + rest * ((slope_left - rise) * rest + (rise - slope_right) * t))
        if v.max(initial=0.0) > _TABLE_END:
            log_tail += np.maximum(v - _TABLE_END, 0.0) * self._slope[rows, -1:] / _TABLE_STEP
        tail = np.exp(log_tail)
        return cast("Floats", np.where(z > 0.0, 1.0 - tail, tail))


def component_quantile(mean: Floats, scale: Floats, nu: Floats, q: Floats | float) -> Floats:
    """Return the quantile of single Student-t distributions, ms; the arguments broadcast. May be negative."""
    return mean + scale * special.stdtrit(nu, q)


def component_cdf(mean: Floats, scale: Floats, nu: Floats, x: Floats) -> Floats:
    """Return P(latency <= x) of single Student-t distributions; the arguments broadcast. 0 where x < 0."""
    return cast("Floats", np.where(x < 0.0, 0.0, special.stdtr(nu, (x - mean) / scale)))


def component_log_density(mean: Floats, scale: Floats, nu: Floats, x: Floats) -> Floats:
    """Return the log density of single Student-t distributions, 1/ms; the arguments (ms) broadcast."""
    half = 0.5 * (nu + 1.0)
    constant = special.gammaln(half) - special.gammaln(0.5 * nu) - 0.5 * np.log(np.pi * nu)
    density: Floats = constant - np.log(scale) - half * np.log1p(((x - mean) / scale) ** 2 / nu)
    return density


def check_probability(value: float, *, name: str = "q") -> float:
    """Return a probability strictly between 0 and 1.

    Raises
    ------
    InputError
        It is not.
    """
    if not 0.0 < value < 1.0:
        msg = f"{name} = {value:g}: give a probability between 0 and 1, without either"
        raise InputError(msg)
    return float(value)
