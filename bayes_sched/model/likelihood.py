r"""The Student-t likelihood that the shipped models share, and varying effects: departures level by level.

An equation is smooth; real latency is a staircase, because kernels work in tiles and graphs are captured for
a few batch sizes. A varying effect multiplies a part of the latency by :math:`e^{r_j}` at level j of a
column, with :math:`r_j \sim \mathrm{Normal}(0, s)`; s, how far levels depart from the equation, is learned
with the rest (partial pooling) and may fade with the column. Levels with data learn their own departure,
levels without keep the equation and widen the band by what other levels were seen to do. An effect may act on
the scale of the noise as well: some levels are noisier than others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pymc as pm
import pytensor.tensor as pt
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from bayes_sched.arrays import Floats, Ints
from bayes_sched.model.equation import Parameter
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import LatencyModel, all_parameters

PREFILL_COLUMN = "num_prefill_reqs"
"""Column of the steps that tells those with prefill from those that only decode."""


def student_t_model(model: LatencyModel, steps: pd.DataFrame, priors: Priors, *, noise: str) -> pm.Model:
    """Return the PyMC model whose mean and scale are the model's own ``latency`` and ``scale``.

    Both must serve PyTensor variables as they serve xarray objects. Where a trace repeats itself the mean is
    evaluated once for each distinct combination of the model's columns, a *cell*, and the steps (the columns
    and ``latency_ms``) refer to their cells; otherwise each step is a cell of its own.
    """
    values, coords = step_data(model, steps)
    with pm.Model(coords=coords) as built:
        table: dict[str, Any] = {name: pm.Data(name, values[name], dims="cell") for name in model.columns}
        cell = (
            pm.Data("cell_of_step", values["cell_of_step"], dims="step")
            if "cell_of_step" in values
            else slice(None)
        )
        observed = pm.Data("observed_ms", values["observed_ms"], dims="step")

        theta: dict[str, Any] = {
            p.name: pm.LogNormal(p.name, priors[p.name].mu, priors[p.name].sigma)
            for p in all_parameters(model, noise)
        }
        if priors.population is not None:
            logs = {name: pt.log(value) for name, value in theta.items()}
            pm.Potential("population", priors.population.log_ratio(logs, priors, pt))
        for effect in effects_of(model):
            theta[effect.name], table[effect.dim] = _log_factors(effect, theta, steps, values[effect.column])
        mean = model.latency(theta, table)  # type: ignore[arg-type]
        scale = model.scale(theta, mean, table) * pt.ones_like(mean)  # type: ignore[arg-type]
        pm.StudentT(
            "latency_ms", nu=theta["nu"], mu=mean[cell], sigma=scale[cell], observed=observed, dims="step"
        )
    return built


def step_data(
    model: LatencyModel, steps: pd.DataFrame, *, by_cell: bool | None = None
) -> tuple[dict[str, NDArray[Any]], dict[str, Ints]]:
    """Return the values of the model's data, and the coordinates of its dims cell and step.

    By default equal steps share a cell if there are at most half as many cells as steps: less pays not.
    """
    columns = list(model.columns)
    table = steps[columns].to_numpy(float)
    values: dict[str, NDArray[Any]] = {"observed_ms": steps["latency_ms"].to_numpy(float)}
    cells, cell_of_step = np.unique(table, axis=0, return_inverse=True)
    if 2 * len(cells) <= len(steps) if by_cell is None else by_cell:
        table, values["cell_of_step"] = cells, cell_of_step.astype(np.int64)
    values |= {name: table[:, i] for i, name in enumerate(columns)}
    return values, {"step": np.arange(len(steps)), "cell": np.arange(len(table))}


def _log_factors(effect: Effect, theta: dict[str, Any], steps: pd.DataFrame, column: Any) -> tuple[Any, Any]:
    """Return the log factors of the levels with data, and the position among them of each cell's level."""
    seen = effect.seen(steps)
    pm.modelcontext(None).add_coord(effect.dim, [effect.labels[level] for level in seen])
    spread = theta[effect.scale.name] * effect.relative_spread[seen]
    factors = pm.Normal(effect.name, 0.0, spread, dims=effect.dim)
    position = np.searchsorted(seen, effect.level(column)).clip(max=len(seen) - 1)
    return factors, pm.Data(f"{effect.dim}_of_cell", position, dims="cell")


@dataclass(frozen=True)
class Effect:
    """A varying effect: departures of a latency from an equation, by the levels of a column.

    The log factor of a level up to v has the standard deviation s / (1 + v / fade): beyond `fade`, what a
    level departs by no longer grows with the column. By default it never fades.
    """

    name: str  # of the variable in every posterior: log factors, unitless, dims (..., `dim`)
    meaning: str
    scale: Parameter  # the standard deviation s of the log factors
    column: str  # of the steps, whose value decides the level
    upper: tuple[float, ...]  # largest value of each level but the last, which is open; increasing
    prefill: bool  # whether it acts on the steps with prefill, or on those that only decode
    fade: float = math.inf
    noise: bool = False  # whether it multiplies the scale of the noise, or (a part of) the latency
    by_size: bool = False  # whether steps with more tokens than requests are taken for those with prefill

    @property
    def dim(self) -> str:
        """Name of the dim of the levels."""
        return f"{self.name}_level"

    @property
    def num_levels(self) -> int:
        """Number of levels."""
        return len(self.upper) + 1

    @cached_property
    def relative_spread(self) -> Floats:
        """Standard deviation of each level's log factor relative to s, dims (level,)."""
        return 1.0 / (1.0 + np.array((*self.upper, self.upper[-1])) / self.fade)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The levels in words: the values they hold."""
        first = [below + 1 for below in (0.0, *self.upper[:-1])]
        closed = (
            f"{low:g}" if low == top else f"{low:g}-{top:g}"
            for low, top in zip(first, self.upper, strict=True)
        )
        return (*closed, f">{self.upper[-1]:g}")

    def level(self, values: ArrayLike) -> Ints:
        """Return the position of the level that holds each value, dims of `values`."""
        return np.searchsorted(np.array(self.upper), np.asarray(values, dtype=np.float64), side="left")

    def acts_on(self, steps: Any) -> Any:
        """Return whether it acts on each step: a mask, dims of the steps."""
        by_size = self.by_size
        has_prefill = steps["total_tokens"] > steps["batch_size"] if by_size else steps[PREFILL_COLUMN] > 0
        return has_prefill if self.prefill else ~has_prefill

    def seen(self, steps: pd.DataFrame) -> Ints:
        """Return the levels of the steps it acts on, increasing; the first level if it acts on none."""
        found: Ints = np.unique(self.level(steps.loc[self.acts_on(steps), self.column]))
        return found if len(found) else np.zeros(1, np.int64)

    def at(self, draws: Any, steps: Any) -> Any:
        """Return the log factor of each step, 0 where it does not act, dims (..., *dims of the steps).

        `draws` hold the log factors under :attr:`name`, dims (..., level). With PyTensor variables, `steps`
        hold under :attr:`dim` the position of each step's level among them.
        """
        factors = draws[self.name]
        if not isinstance(factors, xr.DataArray):
            return self.acts_on(steps) * factors[steps[self.dim]]
        column = steps[self.column]
        level = xr.DataArray(self.level(column.to_numpy()), dims=column.dims)
        return self.acts_on(steps) * factors.drop_vars(self.dim, errors="ignore").isel({self.dim: level})

    def draw(self, scale: Floats, rng: np.random.Generator) -> Floats:
        """Draw log factors of all levels from their population, dims (*dims of `scale`, level)."""
        scale = np.asarray(scale, dtype=np.float64)
        return scale[..., None] * self.relative_spread * rng.standard_normal((*scale.shape, self.num_levels))


def effects_of(model: object) -> tuple[Effect, ...]:
    """Return the varying effects of a model; a model without such an attribute has none."""
    return tuple(getattr(model, "effects", ()))


def with_effects(draws: xr.Dataset, effects: Sequence[Effect], rng: np.random.Generator) -> xr.Dataset:
    """Return draws of scalar parameters, any dims, together with draws of the effects given them."""
    drawn = {}
    for effect in effects:
        scale = draws[effect.scale.name]
        drawn[effect.name] = ((*scale.dims, effect.dim), effect.draw(scale.to_numpy(), rng))
    return draws.assign(drawn).assign_coords({effect.dim: list(effect.labels) for effect in effects})
