"""The posterior predictive distribution of steps: a mixture over draws, evaluated once a distinct step.

Draws are thinned evenly; steps that are alike are computed once; chunks bound the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy import special

from bayes_sched.arrays import Floats
from bayes_sched.errors import InputError
from bayes_sched.model.protocol import LatencyModel
from bayes_sched.posterior.contexts import Contexts
from bayes_sched.steps import POSSIBLE, SIZES, Steps, as_steps

MAX_CHUNK_VALUES = 2**16
"""Values (draws times cells) of one array in a chunk: 0.5 MB, so that a dozen of them stay in a cache."""


@dataclass(frozen=True, eq=False)
class Cells:
    """The distinct steps among some steps, and the way back."""

    table: xr.Dataset
    cell_of_step: NDArray[np.int64]
    template: xr.DataArray

    @classmethod
    def of(cls, steps: xr.Dataset, *, columns: Sequence[str]) -> Cells:
        """Return the distinct rows of `columns`, broadcast; ``possible``, where there is one, masks steps."""
        values = [steps[name].reset_coords(drop=True) for name in columns]
        mask = steps[POSSIBLE] if POSSIBLE in steps else xr.DataArray(True)
        *values, template = xr.broadcast(*values, mask)
        template = template.assign_coords(
            {name: steps[name] for name in columns if set(steps[name].dims) <= set(template.dims)}
        )
        rows = np.stack([value.transpose(*template.dims).to_numpy().ravel() for value in values], axis=-1)
        is_asked = template.to_numpy().ravel()
        if not is_asked.any():
            is_asked = np.ones_like(is_asked)
        distinct, cell_of_asked = np.unique(rows[is_asked], axis=0, return_inverse=True)
        cell_of_step = np.zeros(len(rows), np.int64)
        cell_of_step[is_asked] = cell_of_asked.ravel()
        table = xr.Dataset({name: ("cell", distinct[:, i]) for i, name in enumerate(columns)})
        return cls(table, cell_of_step, template)

    def spread(
        self, values: NDArray[np.float64], *, leading: Mapping[str, NDArray[np.generic]] | None = None
    ) -> xr.DataArray:
        """Return values of the cells as values of the steps."""
        leading = leading or {}
        shape = (*values.shape[:-1], *self.template.shape)
        result = xr.DataArray(
            values[..., self.cell_of_step].reshape(shape),
            dims=(*leading, *self.template.dims),
            coords={**self.template.coords, **leading},
        )
        return result if bool(self.template.all()) else result.where(self.template)


# A component's table: log survival against v = asinh(z), in which a power-law tail is a straight line.
_TABLE_STEP = 1.0 / 64.0
_NUM_NODES = 489
_TABLE_END = (_NUM_NODES - 1) * _TABLE_STEP  # 7.625: z about 1,000
_SMALLEST = 1e-290

_COARSE = 16
_MAX_ITERATIONS = 200
_NEWTON_TOLERANCE = 1e-3  # of the scale; the error after such a step is about its square
_BRACKET_TOLERANCE = 1e-12

_NUM_SHIFTS = 17  # places between which a distribution function is interpolated, from draw to draw
_LEAST_WIDTH = 0.04  # square of the relative width of a draw


class StudentTMixture:
    """Equally weighted Student-t distributions that differ in location, scale and degrees of freedom.

    The distribution function of every component is tabulated once (cubic Hermite interpolation of the
    logarithm of its tail, relative error below 1e-7): ten times faster than evaluating it, which is what the
    time goes to.
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
        """Return P(latency <= x) of each step."""
        probability = self._components((x - mean) / scale, slice(None)).mean(axis=0)
        return cast("Floats", np.where(x < 0.0, 0.0, probability))

    def quantile(self, mean: Floats, scale: Floats, q: float) -> Floats:
        """Return the latency that a step stays below with probability `q`.

        Newton's method within a bracket: a quantile of a mixture lies between the smallest and the largest
        quantile of its components.
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
    """Return a probability strictly between 0 and 1."""
    if not 0.0 < value < 1.0:
        raise InputError(f"{name} = {value:g}: give a probability between 0 and 1, without either")
    return float(value)


THRESHOLD = "latency_ms"
"""Name of the latency that a probability is asked for."""

type Thresholds = float | Sequence[float] | Floats | pd.Series | xr.DataArray
type PerDraw = Callable[[Floats, Floats, Floats, Floats], Floats]
"""(mean, scale: draw x cell; nu: draw x 1; threshold: cell) -> draw x cell."""
type OverDraws = Callable[[StudentTMixture, Floats, Floats, Floats], Floats]
"""(mixture; mean, scale: draw x cell; threshold: cell) -> ... x cell."""


class Evaluator:
    """A model with some draws of its parameters, evaluated at steps.

    Steps may lack columns of the model where there are `contexts` to take them from.
    """

    def __init__(
        self,
        model: LatencyModel,
        posterior: xr.Dataset,
        *,
        max_draws: int | None,
        contexts: Contexts | None = None,
    ) -> None:
        self.model, self._contexts = model, contexts
        thinned = thin(posterior, max_draws=max_draws).transpose("chain", "draw", ...)
        self._leading = {dim: thinned[dim].to_numpy() for dim in ("chain", "draw")}
        self._shape = (thinned.sizes["chain"], thinned.sizes["draw"])
        self._draws = xr.Dataset(
            {
                name: (("sample", *variable.dims[2:]), variable.to_numpy().reshape(-1, *variable.shape[2:]))
                for name, variable in thinned.data_vars.items()
            }
        )
        self._nu: Floats = self._draws["nu"].to_numpy()
        # Which context a draw meets, the same at all steps: evenly spread, and nothing to do with parameters.
        self._levels = np.random.default_rng(0).permutation(len(self._nu)) / len(self._nu)

    @cached_property
    def mixture(self) -> StudentTMixture:
        """The noise of all draws."""
        return StudentTMixture(self._nu)

    def per_draw(
        self, steps: Steps, function: PerDraw, *, threshold: xr.DataArray | None = None
    ) -> xr.DataArray:
        """Apply a function to each draw and step: dims (chain, draw, *dims of steps and threshold).

        Where steps lack columns each draw meets one context.
        """
        cells = self._cells(steps, threshold)
        nu = self._nu[:, None]
        values = [function(mean, scale, nu, x) for mean, scale, x in self._chunks(cells)]
        return cells.spread(np.concatenate(values, -1).reshape(*self._shape, -1), leading=self._leading)

    def mean(self, steps: Steps) -> xr.DataArray:
        """Return the mean latency of each draw, over contexts where steps lack columns."""
        cells = self._cells(steps, None)
        values = [self._moments(part, None)[0] for part in _parts(cells.table, len(self._nu))]
        return cells.spread(np.concatenate(values, -1).reshape(*self._shape, -1), leading=self._leading)

    def cdf(self, steps: Steps, threshold: xr.DataArray) -> xr.DataArray:
        """Return P(latency <= threshold) of each draw, over contexts where steps lack columns."""
        cells = self._cells(steps, threshold)
        values = [self._cdf_draws(part, _threshold(part)) for part in _parts(cells.table, len(self._nu))]
        return cells.spread(np.concatenate(values, -1).reshape(*self._shape, -1), leading=self._leading)

    def _cdf_draws(self, part: xr.Dataset, x: Floats) -> Floats:
        if not self._lacks(part):
            return component_cdf(*self._moments(part), self._nu[:, None], x)
        shape = self._shape_over_contexts(part)
        v = (x - shape.mean) / shape.width
        nodes = np.linspace(v.min(axis=0), v.max(axis=0), _NUM_SHIFTS)
        below = [
            self.mixture.cdf(shape.location, shape.scale, np.maximum(at, -shape.centre) + shape.centre)
            for at in nodes
        ]
        found = [np.interp(v[:, i], nodes[:, i], np.array(below)[:, i]) for i in range(v.shape[1])]
        return np.where(x < 0.0, 0.0, np.stack(found, axis=-1))

    def over_draws(
        self,
        steps: Steps,
        function: OverDraws,
        *,
        leading: Mapping[str, Floats] | None = None,
        threshold: xr.DataArray | None = None,
        level: str | None = "each",
    ) -> xr.DataArray:
        """Apply a function of all draws to each step: dims (*leading, *dims of steps and threshold)."""
        cells = self._cells(steps, threshold)
        found = [function(self.mixture, *chunk) for chunk in self._chunks(cells, level)]
        return cells.spread(np.concatenate(found, axis=-1), leading=leading)

    def quantile(self, steps: Steps, levels: Floats) -> xr.DataArray:
        """Return quantiles of the mixture over draws, ms, dims (quantile, *dims of the steps)."""

        def function(mixture: StudentTMixture, mean: Floats, scale: Floats, x: Floats) -> Floats:
            return np.stack([mixture.quantile(mean, scale, level) for level in levels])

        return self.over_draws(steps, function, leading={"quantile": levels})

    def quantile_draws(self, steps: Steps, levels: Floats) -> xr.DataArray:
        """Return quantiles of each draw, ms, dims (quantile, chain, draw, *dims of the steps).

        Of its noise; where steps lack columns, of noise and contexts together.
        """
        cells = self._cells(steps, None)
        found = [self._quantiles_of_draws(part, levels) for part in _parts(cells.table, len(self._nu))]
        values = np.concatenate(found, -1).reshape(len(levels), *self._shape, -1)
        return cells.spread(values, leading={"quantile": levels, **self._leading})

    def _quantiles_of_draws(self, part: xr.Dataset, levels: Floats) -> Floats:
        if self._lacks(part):
            shape = self._shape_over_contexts(part)
            whole = np.stack([self.mixture.quantile(shape.location, shape.scale, q) for q in levels])
            found = shape.mean + shape.width * (whole - shape.centre)[:, None]
        else:
            moments = self._moments(part)
            found = np.stack([component_quantile(*moments, self._nu[:, None], q) for q in levels])
        return np.maximum(found, 0.0)

    def _shape_over_contexts(self, part: xr.Dataset) -> _Shape:
        """Return how latencies spread around each draw's mean over the contexts that steps lack.

        What contexts do to a latency is about the same for all draws, and so is the distribution around the
        mean, which all draws together give; a draw's is as much wider as its noise is, in quadrature.
        """
        mean, scale = self._moments(part, None)
        each, each_scale = self._moments(part)
        centre = mean.mean(axis=0)
        noise = scale**2
        spread = (each - mean).var(axis=0) + noise.mean(axis=0)
        width = np.sqrt(np.maximum(1.0 + (noise - noise.mean(axis=0)) / spread, _LEAST_WIDTH))
        return _Shape(mean, width, each - mean + centre, each_scale, centre)

    def sample(self, steps: Steps, *, seed: int) -> xr.DataArray:
        """Draw one latency for each draw and step, independent between steps, at least 0."""
        cells = self._cells(steps, None)
        moments = [self._moments(part) for part in _parts(cells.table, len(self._nu))]
        mean, scale = (np.concatenate(values, -1) for values in zip(*moments, strict=True))
        shape = (len(self._nu), cells.cell_of_step.size)
        noise = np.random.default_rng(seed).standard_t(self._nu[:, None], size=shape)
        values = mean[:, cells.cell_of_step] + scale[:, cells.cell_of_step] * noise
        each_step = Cells(cells.table, np.arange(cells.cell_of_step.size), cells.template)
        return each_step.spread(np.maximum(values, 0.0).reshape(*self._shape, -1), leading=self._leading)

    def _cells(self, steps: Steps, threshold: xr.DataArray | None) -> Cells:
        columns = self.model.columns
        if self._contexts is not None:
            columns = tuple(name for name in columns if name in SIZES or name in steps)
        dataset = as_steps(steps, columns=columns)
        if threshold is None:
            return Cells.of(dataset, columns=columns)
        try:
            dataset, threshold = xr.align(dataset, threshold, join="exact")
            return Cells.of(dataset.assign({THRESHOLD: threshold}), columns=(*columns, THRESHOLD))
        except ValueError as error:
            raise InputError(
                f"{THRESHOLD} and the steps differ in the length or the labels of their dims ({error})"
            ) from error

    def _chunks(self, cells: Cells, level: str | None = "each") -> Iterator[tuple[Floats, Floats, Floats]]:
        """Yield location and scale, dims (draw, cell), and threshold, dims (cell,), of consecutive cells.

        Cells that differ in nothing but the threshold follow each other: the model is evaluated once for all.
        """
        table, num = cells.table, len(self._nu)
        sizes = np.stack([table[name].to_numpy() for name in table if name != THRESHOLD])
        is_new = np.append(True, (np.diff(sizes) != 0.0).any(axis=0))
        x, of_cell, first = _threshold(table), np.cumsum(is_new) - 1, 0
        for block in _parts(table.isel(cell=is_new), num):
            mean, scale = self._moments(block, level)
            if not x.size:
                yield mean, scale, x
                continue
            rows = np.flatnonzero((of_cell >= first) & (of_cell < first + mean.shape[1]))
            for part in np.array_split(rows, -(-len(rows) * num // MAX_CHUNK_VALUES)):
                yield mean[:, of_cell[part] - first], scale[:, of_cell[part] - first], x[part]
            first += mean.shape[1]

    def _lacks(self, part: xr.Dataset) -> bool:
        return bool(set(self.model.columns) - set(part))

    def _moments(self, part: xr.Dataset, level: str | None = "each") -> tuple[Floats, Floats]:
        """Return location and scale, dims (draw, cell), of some cells.

        What they lack is, for each draw, what another step of the trace has, or the mean of those (None).
        """
        if self._contexts is not None and self._lacks(part):
            part = self._contexts.mean(part) if level is None else self._contexts.at(part, self._levels)
        mean = self.model.latency(self._draws, part)
        mean, scale = xr.broadcast(mean, self.model.scale(self._draws, mean, part))
        dims = ("sample", "cell")
        return mean.transpose(*dims).to_numpy(), scale.transpose(*dims).to_numpy()


@dataclass(frozen=True)
class _Shape:
    """Latencies over contexts: of each draw mean and width, dims (draw, cell), of all around one centre."""

    mean: Floats
    width: Floats  # relative to that of all draws together
    location: Floats
    scale: Floats
    centre: Floats  # dims (cell,)


def _parts(table: xr.Dataset, num_draws: int) -> Iterator[xr.Dataset]:
    """Yield consecutive cells, so few that their values for all draws stay in a cache."""
    size = max(1, MAX_CHUNK_VALUES // num_draws)
    for start in range(0, table.sizes["cell"], size):
        yield table.isel(cell=slice(start, start + size))


def _threshold(part: xr.Dataset) -> Floats:
    return part[THRESHOLD].to_numpy() if THRESHOLD in part else np.empty(0)


def thin(posterior: xr.Dataset, *, max_draws: int | None) -> xr.Dataset:
    """Return at most `max_draws` draws (but one a chain), evenly spaced over the chains; None returns all."""
    if max_draws is None:
        return posterior
    if max_draws < 1:
        raise InputError(f"max_draws = {max_draws}: give a positive number, or None for all draws")
    num_draws = posterior.sizes["draw"]
    per_chain = max(1, max_draws // posterior.sizes["chain"])
    if per_chain >= num_draws:
        return posterior
    return posterior.isel(draw=((np.arange(per_chain) + 0.5) * num_draws / per_chain).astype(np.int64))


def as_threshold(latency_ms: Thresholds) -> xr.DataArray:
    """Return latencies with named dims: of their own for a sequence, ``step`` for a Series."""
    try:
        if isinstance(latency_ms, xr.DataArray):
            threshold = latency_ms.astype(np.float64).reset_coords(drop=True)
        elif isinstance(latency_ms, pd.Series):
            threshold = xr.DataArray(latency_ms.to_numpy(dtype=np.float64), dims="step")
        else:
            values = np.asarray(latency_ms, dtype=np.float64)
            dims = (THRESHOLD,) if values.ndim else ()
            threshold = xr.DataArray(values, dims=dims, coords=dict.fromkeys(dims, values))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{THRESHOLD} is a number, a sequence of numbers, a Series or a DataArray ({error})"
        ) from error
    if bool(np.isnan(threshold.to_numpy()).any()):
        raise InputError(f"{THRESHOLD} holds NaN: give a latency in ms")
    return threshold


def quantile_levels(q: float | Sequence[float] | Floats) -> Floats:
    """Return probabilities, dims (quantile,), each strictly between 0 and 1; else raise InputError."""
    return np.array([check_probability(float(level)) for level in np.atleast_1d(q)])


def band_levels(probability: float) -> Floats:
    """Return the probabilities of a band's lower edge, its median and its upper edge."""
    tail = 0.5 * (1.0 - check_probability(probability, name="probability"))
    return np.array([tail, 0.5, 1.0 - tail])
