"""Evaluates a model's posterior at steps: thinned draws, distinct steps, chunks that bound the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayes_sched.cells import Cells
from bayes_sched.errors import InputError
from bayes_sched.model import LatencyModel
from bayes_sched.predictive import StudentTMixture, check_probability, component_quantile
from bayes_sched.steps import Steps, as_steps

THRESHOLD = "latency_ms"
"""Name of the latency that a probability is asked for."""

type Floats = NDArray[np.float64]
type Thresholds = float | Sequence[float] | Floats | pd.Series | xr.DataArray
type PerDraw = Callable[[Floats, Floats, Floats, Floats], Floats]
"""(mean, scale: draw x cell; nu: draw x 1; threshold: cell) -> draw x cell."""
type OverDraws = Callable[[StudentTMixture, Floats, Floats, Floats], Floats]
"""(mixture; mean, scale: draw x cell; threshold: cell) -> ... x cell."""


class Evaluator:
    """A model with some draws of its parameters, evaluated at steps.

    Parameters
    ----------
    model : LatencyModel
    posterior : Dataset, dims (chain, draw)
    max_draws : int or None
        Draws to use, evenly spaced over the chains; None uses all.

    Raises
    ------
    InputError
        `max_draws` is below 1.
    """

    def __init__(self, model: LatencyModel, posterior: xr.Dataset, *, max_draws: int | None) -> None:
        self.model = model
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

    @cached_property
    def mixture(self) -> StudentTMixture:
        """The noise of all draws."""
        return StudentTMixture(self._nu)

    def per_draw(
        self, steps: Steps, function: PerDraw, *, threshold: xr.DataArray | None = None
    ) -> xr.DataArray:
        """Apply a function to each draw and step.

        Returns
        -------
        DataArray, dims (chain, draw, *dims of steps and threshold)
        """
        cells = self._cells(steps, threshold)
        nu = self._nu[:, None]
        parts = [function(mean, scale, nu, x) for mean, scale, x in self._chunks(cells)]
        values = np.concatenate(parts, axis=-1)
        return cells.spread(values.reshape(*self._shape, -1), leading=self._leading)

    def over_draws(
        self,
        steps: Steps,
        function: OverDraws,
        *,
        leading: Mapping[str, Floats] | None = None,
        threshold: xr.DataArray | None = None,
    ) -> xr.DataArray:
        """Apply a function of all draws to each step.

        Returns
        -------
        DataArray, dims (*leading, *dims of steps and threshold)
        """
        cells = self._cells(steps, threshold)
        parts = [function(self.mixture, mean, scale, x) for mean, scale, x in self._chunks(cells)]
        return cells.spread(np.concatenate(parts, axis=-1), leading=leading)

    def quantile(self, steps: Steps, levels: Floats) -> xr.DataArray:
        """Return quantiles of the mixture over draws, ms, dims (quantile, *dims of the steps)."""

        def function(mixture: StudentTMixture, mean: Floats, scale: Floats, x: Floats) -> Floats:
            return np.stack([mixture.quantile(mean, scale, level) for level in levels])

        return self.over_draws(steps, function, leading={"quantile": levels})

    def quantile_draws(self, steps: Steps, levels: Floats) -> xr.DataArray:
        """Return quantiles of each draw's noise, ms, dims (quantile, chain, draw, *dims of the steps)."""

        def at(level: float) -> PerDraw:
            return lambda mean, scale, nu, x: np.maximum(component_quantile(mean, scale, nu, level), 0.0)

        parts = [self.per_draw(steps, at(level)) for level in levels]
        return xr.concat(parts, dim=xr.DataArray(levels, dims="quantile", name="quantile"))

    def sample(self, steps: Steps, *, seed: int) -> xr.DataArray:
        """Draw one latency for each draw and step, independent between steps, at least 0.

        Returns
        -------
        DataArray, dims (chain, draw, *dims of the steps)
        """
        cells = self._cells(steps, None)
        mean, scale = (np.concatenate(parts, axis=-1) for parts in zip(*self._moments(cells), strict=True))
        shape = (len(self._nu), cells.cell_of_step.size)
        noise = np.random.default_rng(seed).standard_t(self._nu[:, None], size=shape)
        values = mean[:, cells.cell_of_step] + scale[:, cells.cell_of_step] * noise
        each_step = Cells(cells.table, np.arange(cells.cell_of_step.size), cells.template)
        return each_step.spread(np.maximum(values, 0.0).reshape(*self._shape, -1), leading=self._leading)

    def _cells(self, steps: Steps, threshold: xr.DataArray | None) -> Cells:
        dataset = as_steps(steps, columns=self.model.columns)
        if threshold is None:
            return Cells.of(dataset, columns=self.model.columns)
        try:
            dataset, threshold = xr.align(dataset, threshold, join="exact")
            return Cells.of(dataset.assign({THRESHOLD: threshold}), columns=(*self.model.columns, THRESHOLD))
        except ValueError as error:
            msg = f"{THRESHOLD} and the steps differ in the length or the labels of their dims ({error})"
            raise InputError(msg) from error

    def _chunks(self, cells: Cells) -> Iterator[tuple[Floats, Floats, Floats]]:
        thresholds = cells.table[THRESHOLD].to_numpy() if THRESHOLD in cells.table else np.empty(0)
        start = 0
        for mean, scale in self._moments(cells):
            yield mean, scale, thresholds[start : start + mean.shape[1]]
            start += mean.shape[1]

    def _moments(self, cells: Cells) -> Iterator[tuple[Floats, Floats]]:
        """Yield location and scale, dims (draw, cell), of consecutive cells."""
        for chunk in cells.chunks(num_draws=len(self._nu)):
            mean = self.model.latency(self._draws, chunk)
            mean, scale = xr.broadcast(mean, self.model.scale(self._draws, mean, chunk))
            dims = ("sample", "cell")
            yield mean.transpose(*dims).to_numpy(), scale.transpose(*dims).to_numpy()


def thin(posterior: xr.Dataset, *, max_draws: int | None) -> xr.Dataset:
    """Return at most `max_draws` draws (but one a chain), evenly spaced over the chains; None returns all.

    Parameters
    ----------
    posterior : Dataset, dims (chain, draw)
    max_draws : int or None

    Raises
    ------
    InputError
        `max_draws` is below 1.
    """
    if max_draws is None:
        return posterior
    if max_draws < 1:
        msg = f"max_draws = {max_draws}: give a positive number, or None for all draws"
        raise InputError(msg)
    num_draws = posterior.sizes["draw"]
    per_chain = max(1, max_draws // posterior.sizes["chain"])
    if per_chain >= num_draws:
        return posterior
    return posterior.isel(draw=((np.arange(per_chain) + 0.5) * num_draws / per_chain).astype(np.int64))


def as_threshold(latency_ms: Thresholds) -> xr.DataArray:
    """Return latencies with named dims.

    Parameters
    ----------
    latency_ms : float, sequence, Series or DataArray
        A number has no dims, a sequence is a dim ``latency_ms`` of its own, a Series goes along dim ``step``.

    Raises
    ------
    InputError
        A value is not a number, or an array has several dims without names.
    """
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
        msg = f"{THRESHOLD} is a number, a sequence of numbers, a Series or a DataArray ({error})"
        raise InputError(msg) from error
    if bool(np.isnan(threshold.to_numpy()).any()):
        msg = f"{THRESHOLD} holds NaN: give a latency in ms"
        raise InputError(msg)
    return threshold


def quantile_levels(q: float | Sequence[float] | Floats) -> Floats:
    """Return probabilities, dims (quantile,), each strictly between 0 and 1; else raise InputError."""
    return np.array([check_probability(float(level)) for level in np.atleast_1d(q)])


def band_levels(probability: float) -> Floats:
    """Return the probabilities of a band's lower edge, its median and its upper edge."""
    tail = 0.5 * (1.0 - check_probability(probability, name="probability"))
    return np.array([tail, 0.5, 1.0 - tail])
