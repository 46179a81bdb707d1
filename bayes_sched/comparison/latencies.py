"""Which server takes longer for a step: ratios of mean latencies, probabilities, verdicts."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import special

from bayes_sched.comparison.paired import Servers
from bayes_sched.comparison.verdicts import Floats, verdicts
from bayes_sched.prediction import band_levels
from bayes_sched.predictive import component_cdf
from bayes_sched.steps import Steps


def pairs_of(labels: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return every pair of servers, by position, in the order given."""
    return list(combinations(range(len(labels)), 2))


def pair_name(first: str, second: str) -> str:
    """Return the name of a pair, which is that of the ratio."""
    return f"{first} / {second}"


def latency_maps(
    servers: Servers, steps: Steps, mean_ms: xr.DataArray, *, rope: float, probability: float, seed: int
) -> xr.Dataset:
    """Compare the latencies of each pair of servers at each step.

    Parameters
    ----------
    servers : Servers
    steps : DataFrame or Dataset
    mean_ms : DataArray, dims (gpu, draw, *steps)
        :meth:`Servers.mean_latency_ms` of the steps.
    rope, probability : float
    seed : int
        Of the noise in ``p_step_faster``.

    Returns
    -------
    Dataset
        Dims (gpu, *steps): ``mean_lower_ms``, ``mean_median_ms``, ``mean_upper_ms``; ``log_sd``, standard
        deviation of the logarithm of the mean latency; ``p_fastest``, probability that no other server is
        faster on average. Dims (pair, *steps), with coordinates ``first`` and ``second``: ``ratio_lower``,
        ``ratio_median``, ``ratio_upper`` of the first one's mean latency over the second one's; ``p_faster``
        that it is below 1; ``p_step_faster`` that a single step is faster on the first; ``verdict``.
    """
    quantiles = mean_ms.quantile(band_levels(probability), dim="draw", skipna=False)
    is_step = ~np.isnan(mean_ms.isel(gpu=0, draw=0, drop=True))
    fastest = (mean_ms == mean_ms.min("gpu")).mean("draw").where(is_step)
    maps = xr.Dataset(
        {
            **_three(quantiles, "mean_{}_ms", {"units": "ms"}),
            "log_sd": mean_ms.copy(data=np.log(mean_ms.to_numpy())).std("draw"),
            "p_fastest": fastest,
        }
    )
    scale_ms, nu = servers.scale_ms(steps), servers.nu()
    pairs = pairs_of(servers.labels)
    parts = [
        _pair_map(
            mean_ms.isel(gpu=[a, b]),
            scale_ms.isel(gpu=[a, b]),
            nu.isel(gpu=[a, b]),
            probability=probability,
            seed=seed,
        ).where(is_step)
        for a, b in pairs
    ]
    firsts, seconds = ([servers.labels[p[i]] for p in pairs] for i in (0, 1))
    names = [pair_name(first, second) for first, second in zip(firsts, seconds, strict=True)]
    joined = xr.concat(parts, dim=pd.Index(names, name="pair"), join="exact")
    joined = joined.assign_coords(first=("pair", firsts), second=("pair", seconds))
    found = verdicts(joined["ratio_lower"].to_numpy(), joined["ratio_upper"].to_numpy(), rope=rope)
    return maps.merge(joined.assign(verdict=joined["ratio_lower"].copy(data=found)))


def _pair_map(
    mean_ms: xr.DataArray, scale_ms: xr.DataArray, nu: xr.DataArray, *, probability: float, seed: int
) -> xr.Dataset:
    """Compare two servers; the arguments have dim gpu of length two."""
    first, second = (mean_ms.isel(gpu=i, drop=True) for i in (0, 1))
    ratio = (first / second).quantile(band_levels(probability), dim="draw", skipna=False)
    return xr.Dataset(
        {
            **_three(ratio, "ratio_{}", {"units": "1"}),
            "p_faster": (first < second).mean("draw"),
            "p_step_faster": _step_faster(mean_ms, scale_ms, nu, seed=seed),
        }
    )


def _step_faster(
    mean_ms: xr.DataArray, scale_ms: xr.DataArray, nu: xr.DataArray, *, seed: int
) -> xr.DataArray:
    """Return the predictive probability that a step on the first server beats one on the second.

    One noise value a draw on the first server, spread evenly over the quantiles and the same at every step;
    on the second the distribution function, so that the result carries little noise of its own.
    """
    num = mean_ms.sizes["draw"]
    levels = (np.random.default_rng([seed, 1]).permutation(num) + 0.5) / num
    means, scales = (array.transpose("gpu", "draw", ...).to_numpy() for array in (mean_ms, scale_ms))
    over_steps = (slice(None), *[None] * (means.ndim - 2))
    freedom: Floats = nu.transpose("gpu", "draw").to_numpy()
    noise = special.stdtrit(freedom[0], levels)[over_steps]
    first = np.maximum(means[0] + scales[0] * noise, 0.0)
    below = component_cdf(means[1], scales[1], freedom[1][over_steps], first)
    template = mean_ms.isel(gpu=0, draw=0, drop=True)
    return template.copy(data=1.0 - below.mean(axis=0)).drop_attrs()


def _three(quantiles: xr.DataArray, name: str, attrs: dict[str, str]) -> dict[str, xr.DataArray]:
    return {
        name.format(part): quantiles.isel(quantile=i, drop=True).assign_attrs(attrs)
        for i, part in enumerate(("lower", "median", "upper"))
    }


PAIR_COLUMNS = ("ratio_median", "ratio_lower", "ratio_upper", "p_faster", "p_step_faster", "verdict")


_KINDS: Any = {"batch_size": int, "total_tokens": int, "extrapolation": bool, "fewest_like": int}
PAIR_TABLE_COLUMNS = ("gpu", "other", *_KINDS, "gpu_ms", "other_ms", *PAIR_COLUMNS)


def pair_rows(maps: xr.Dataset, steps: xr.Dataset) -> pd.DataFrame:
    """Return the maps as a table, one row a pair and possible step.

    Parameters
    ----------
    maps : Dataset
        Of :func:`latency_maps`.
    steps : Dataset
        Whose ``batch_size``, ``total_tokens``, ``extrapolation`` and ``fewest_like`` the rows begin with.

    Returns
    -------
    DataFrame
        ``gpu``, ``other``, ``batch_size``, ``total_tokens``, ``extrapolation``, ``fewest_like`` (steps
        like it in the trace that has the fewest), ``gpu_ms``, ``other_ms`` (medians of the mean latency), and
        `PAIR_COLUMNS`.
    """
    tables = []
    for pair in maps["pair"].to_numpy():
        one = maps.sel(pair=pair)
        first, second = str(one["first"].item()), str(one["second"].item())
        values = xr.Dataset(
            {
                "batch_size": steps["batch_size"],
                "total_tokens": steps["total_tokens"],
                "extrapolation": steps["extrapolation"],
                "fewest_like": steps["fewest_like"],
                "gpu_ms": maps["mean_median_ms"].sel(gpu=first, drop=True),
                "other_ms": maps["mean_median_ms"].sel(gpu=second, drop=True),
                **{name: one[name].reset_coords(drop=True) for name in PAIR_COLUMNS},
            }
        )
        template = values["ratio_median"]
        columns = {
            name: values[name].broadcast_like(template).transpose(*template.dims).to_numpy().ravel()
            for name in dict.fromkeys([*_KINDS, *map(str, values.data_vars)])
        }
        table = pd.DataFrame(columns)
        table.insert(0, "gpu", first)
        table.insert(1, "other", second)
        tables.append(table[table["ratio_median"].notna()])
    return pd.concat(tables, ignore_index=True)[list(PAIR_TABLE_COLUMNS)].astype(_KINDS)
