"""What the figures of a fit show: bands over steps, residuals, densities and ranks of draws."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats.base import array_stats
from scipy.stats import kstwo, rankdata
from scipy.stats import t as student_t

from bayes_sched.arrays import Floats
from bayes_sched.checks.calibration import residual_table, thin
from bayes_sched.model.equation import Parameter
from bayes_sched.model.likelihood import Effect, effects_of
from bayes_sched.model.protocol import all_parameters
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.steps import as_steps, decode_only, log_grid, sample_steps, steps_arrays, steps_grid

CONTOURED = {0.5: "Median latency (ms)", 0.99: "99th percentile of latency (ms)"}
"""The quantiles over (B, S), and what to call them."""
_NUM_PANELS = 4
_NUM_GRID, _NUM_COARSE, _NUM_FINE = 80, 32, 160
_PRIOR_DRAWS, _PRIOR_STEPS, _NUM_PRIOR_GRID, _PRIOR_SEED = 4000, 100, 40, 7
_PAIR_DRAWS = 1000
_MAX_LEVELS = 6
_RANK_BAND = 0.99


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FitViews:
    """What the figures of a fit show."""

    steps: pd.DataFrame  # the steps of the trace
    by_tokens: dict[int, pd.DataFrame]
    """For some numbers of requests, bands over the tokens: the columns of
    :func:`~bayes_sched.posterior.typical_steps.band_table`."""
    by_batch: pd.DataFrame  # the same of decode-only steps
    surface: xr.DataArray
    """dims (quantile, total_tokens, batch_size): latency quantiles, ms; NaN where no step is possible."""
    veil: xr.Dataset  # dims (batch_size, total_tokens): a finer grid: ``extrapolation``, ``possible``
    residuals: pd.DataFrame  # :func:`residual_table`
    prior_latency: xr.DataArray
    """dims (draw, total_tokens): latencies that the priors allow, ms, at the median number of requests
    (``attrs``: ``batch_size``)."""
    prior_marginal: Floats  # dims (value,): the same over some steps of the trace
    parameters: tuple[ParameterView, ...]
    combinations: xr.Dataset
    """dims (sample,): some draws of the identified combinations; ``unit`` in their attributes."""
    ranks: dict[str, RankView]  # by the title of each parameter and sampled coordinate
    effects: tuple[Effect, ...]

    @classmethod
    def of(cls, fit: FittedModel, steps: pd.DataFrame, bands: dict[str, pd.DataFrame]) -> FitViews:
        """Compute them; `bands` are those of `band_sizes`."""
        coarse, fine = _grid(steps, _NUM_COARSE), _grid(steps, _NUM_FINE)
        batch_size = int(steps["batch_size"].median())
        tokens = log_grid(batch_size, float(steps["total_tokens"].max()), _NUM_PRIOR_GRID)
        if len(tokens) == 1:
            tokens = np.array([tokens[0], tokens[0] * 1.2])
        allowed = _prior_latency(fit, fit.completed(steps_arrays(batch_size, tokens)))
        marginal = _prior_latency(fit, as_steps(sample_steps(steps, _PRIOR_STEPS), columns=fit.model.columns))
        combinations = fit.model.combinations(thin(fit.posterior, _PAIR_DRAWS))
        return cls(
            steps=steps,
            by_tokens={b: bands["by_tokens"].query("batch_size == @b") for b in typical_batch_sizes(steps)},
            by_batch=bands["by_batch"],
            surface=fit.quantile(coarse, list(CONTOURED)).where(coarse["possible"]),
            veil=fine.assign(extrapolation=fit.extrapolation(fine)),
            residuals=residual_table(fit, steps),
            prior_latency=xr.DataArray(
                allowed, {"total_tokens": tokens}, ("draw", "total_tokens"), attrs={"batch_size": batch_size}
            ),
            prior_marginal=np.ravel(marginal),
            parameters=tuple(ParameterView.of(fit, p) for p in _parameters(fit)),
            combinations=combinations.stack(sample=("chain", "draw")),  # noqa: PD013, an xarray object
            ranks=_ranks(fit),
            effects=effects_of(fit.model),
        )


@dataclass(frozen=True, slots=True, eq=False)
class ParameterView:
    """Densities of a parameter's decimal logarithm, and the range of its values worth showing."""

    parameter: Parameter
    prior: tuple[Floats, Floats]
    posterior: tuple[Floats, Floats]
    span: tuple[float, float]

    @classmethod
    def of(cls, fit: FittedModel, parameter: Parameter) -> ParameterView:
        """Compute them."""
        prior, posterior = fit.prior[parameter.name], fit.posterior[parameter.name]
        low, high = (float(prior.quantile(q)) for q in (0.001, 0.999))
        return cls(
            parameter,
            log10_density(prior),
            log10_density(posterior),
            (min(low, float(posterior.min())), max(high, float(posterior.max()))),
        )


@dataclass(frozen=True, slots=True, eq=False)
class RankView:
    """Deviation of each chain's ranks from even, dims (chain, point), and how far it may go by chance."""

    lines: Floats
    half_width: float


def typical_batch_sizes(steps: pd.DataFrame) -> list[int]:
    """Return at most four numbers of requests that span the steps which hold more tokens than requests."""
    mixed = steps[steps["total_tokens"] > steps["batch_size"]]
    batch_size = (steps if mixed.empty else mixed)["batch_size"]
    low, high = batch_size.quantile([0.01, 0.99], interpolation="nearest")
    seen = np.unique(batch_size)
    wished = np.geomspace(low, high, _NUM_PANELS)
    nearest = np.abs(np.log(seen)[:, None] - np.log(wished)).argmin(axis=0)
    return [int(b) for b in np.unique(seen[nearest])]


def band_sizes(steps: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the steps whose bands are drawn: over tokens for some numbers of requests, and decode-only."""
    decodes, most_tokens = decode_only(steps), float(steps["total_tokens"].max())
    requests = log_grid(1.0, float((steps if decodes.empty else decodes)["batch_size"].max()), _NUM_GRID)
    over_tokens = [
        pd.DataFrame({"batch_size": b, "total_tokens": log_grid(b, most_tokens, _NUM_GRID)})
        for b in typical_batch_sizes(steps)
    ]
    return {
        "by_tokens": pd.concat(over_tokens, ignore_index=True),
        "by_batch": pd.DataFrame({"batch_size": requests, "total_tokens": requests}),
    }


def _grid(steps: pd.DataFrame, num: int) -> xr.Dataset:
    """Return a logarithmic grid over the trace's range; it holds the steps with S = B, its lower edge."""
    batch_size = log_grid(1.0, float(steps["batch_size"].max()), num)
    total_tokens = log_grid(1.0, float(steps["total_tokens"].max()), num)
    return steps_grid(batch_size=batch_size, total_tokens=np.union1d(batch_size, total_tokens))


def _prior_latency(fit: FittedModel, steps: xr.Dataset) -> Floats:
    """Draw latencies from the prior predictive distribution, ms, never negative, dims (draw, step)."""
    draws = thin(fit.prior, _PRIOR_DRAWS)
    mean = fit.model.latency(draws, steps).transpose("draw", "step")
    scale = fit.model.scale(draws, mean, steps).broadcast_like(mean).transpose("draw", "step").to_numpy()
    noise = student_t.rvs(
        draws["nu"].to_numpy()[:, None], size=mean.shape, random_state=np.random.default_rng(_PRIOR_SEED)
    )
    latency_ms: Floats = np.maximum(mean.to_numpy() + scale * noise, 0.0)
    return latency_ms


def log10_density(draws: xr.DataArray | Floats) -> tuple[Floats, Floats]:
    """Return a kernel density of the decimal logarithm of positive draws: points, densities; dims (point,).

    The bandwidth is the one of ArviZ, which does not smear two modes into one.
    """
    x, density, _ = array_stats.kde(np.log10(np.ravel(draws)))
    return np.asarray(x, float), np.asarray(density, float)


def _parameters(fit: FittedModel) -> tuple[Parameter, ...]:
    return all_parameters(fit.model, fit.metadata.noise)


def _ranks(fit: FittedModel) -> dict[str, RankView]:
    table = fit.convergence.table
    ess_bulk = {kind: rows["ess_bulk"].to_dict() for kind, rows in table.groupby("kind")}
    views = {
        f"${p.symbol}$": _rank_view(fit.posterior[p.name], ess_bulk["parameter"][p.name])
        for p in _parameters(fit)
    }
    for name in _shown_coordinates(fit):
        views[name] = _rank_view(_coordinate(fit, name), ess_bulk["coordinate"][name])
    return views


def _rank_view(draws: xr.DataArray, ess_bulk: float) -> RankView:
    lines = rank_deviation(draws)
    effective = max(2, round(ess_bulk / len(lines))) if math.isfinite(ess_bulk) else 2
    return RankView(lines, float(kstwo.ppf(_RANK_BAND, effective)))


def rank_deviation(draws: xr.DataArray) -> Floats:
    """Return how far the ranks of each chain are from even, dims (chain, point).

    Share of the chain's draws up to a relative rank, minus that rank, over 101 even points in [0, 1].
    """
    values = draws.transpose("chain", "draw").to_numpy()
    relative = rankdata(values).reshape(values.shape) / values.size
    points = np.linspace(0.0, 1.0, 101)
    shares = [np.searchsorted(np.sort(chain), points, side="right") / len(chain) for chain in relative]
    return np.array(shares) - points


def _shown_coordinates(fit: FittedModel) -> list[str]:
    """Return the sampled coordinates; of the levels of effects, which are many, those that agree least."""
    table = fit.convergence.table
    table = table[table["kind"] == "coordinate"]
    effects = [effect.name for effect in effects_of(fit.model)]
    is_level = table.index.str.partition("[").get_level_values(0).isin(effects)
    worst = table[is_level].nlargest(_MAX_LEVELS, "r_hat")
    return [str(name) for name in (*table.index[~is_level], *worst.index)]


def _coordinate(fit: FittedModel, name: str) -> xr.DataArray:
    """Return the draws of a sampled coordinate by its name in the convergence table."""
    group = fit.data["coordinates"].to_dataset()
    if name in group.data_vars:
        return group[name]
    values = next(iter(group.data_vars.values()))
    (dim,) = set(values.dims) - {"chain", "draw"}
    return values.sel({dim: name})
