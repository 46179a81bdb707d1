"""The parameters of several servers side by side, with a verdict only where the data identify them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import special

from bayes_sched.arrays import Floats
from bayes_sched.comparison.members import Member
from bayes_sched.comparison.verdicts import VALUE_WORDS, Servers, pair_name, pairs_of, verdicts
from bayes_sched.posterior.parameters import WELL
from bayes_sched.posterior.prediction import band_levels, component_cdf
from bayes_sched.steps import Steps


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


IDENTIFIED = WELL
"""Contraction from which a verdict is given, on both servers. Not less: two servers whose combinations differ
move even parameters that nothing but a prior separates, such as P_max, apart, and their contractions reach
0.6."""


def parameter_values(members: Sequence[Member], *, probability: float) -> pd.DataFrame:
    """Return each server's parameters and combinations.

    Returns
    -------
    DataFrame
        The columns of :meth:`bayes_sched.fitted.FittedModel.parameter_table`, before them ``gpu``, and
        ``identified``: whether the contraction reaches `IDENTIFIED`.
    """
    tables = []
    for member in members:
        table = member.fit.parameter_table(probability=probability)
        table.insert(0, "gpu", member.label)
        tables.append(table.assign(identified=table["contraction"] >= IDENTIFIED))
    return pd.concat(tables, ignore_index=True)


def parameter_ratios(
    servers: Servers, values: pd.DataFrame, *, rope: float, probability: float
) -> pd.DataFrame:
    """Compare parameters and combinations of each pair of servers.

    Parameters
    ----------
    servers : Servers
    values : DataFrame
        Of :func:`parameter_values`.
    rope, probability : float

    Returns
    -------
    DataFrame
        ``name``, ``unit``, ``kind``, ``gpu``, ``other``, ``difference``, ``difference_lower``,
        ``difference_upper`` (first less second, in the unit), ``ratio_median``, ``ratio_lower``,
        ``ratio_upper`` (first over second), ``p_greater``, ``identified`` (on both), ``verdict`` (``lower``,
        ``higher``, ``equivalent``, ``undecided``, or on which server the data do not identify it).
    """
    tables = {label: group.set_index("name") for label, group in values.groupby("gpu", sort=False)}
    draws = [_quantities(servers, i) for i in range(len(servers.labels))]
    rows = []
    for a, b in pairs_of(servers.labels):
        first, second = servers.labels[a], servers.labels[b]
        for name in tables[first].index.intersection(tables[second].index, sort=False):
            of_first, of_second = tables[first].loc[name], tables[second].loc[name]
            is_known = {first: bool(of_first["identified"]), second: bool(of_second["identified"])}
            row = _ratio(draws[a][name], draws[b][name], rope=rope, probability=probability)
            if not all(is_known.values()):
                open_on = " and ".join(label for label, known in is_known.items() if not known)
                row["verdict"] = f"none: not identified on {open_on}"
            rows.append(
                {
                    "name": name,
                    "unit": of_first["unit"],
                    "kind": of_first["kind"],
                    "gpu": first,
                    "other": second,
                    **{key: value for key, value in row.items() if key != "verdict"},
                    "identified": all(is_known.values()),
                    "verdict": row["verdict"],
                }
            )
    return pd.DataFrame(rows)


def _quantities(servers: Servers, number: int) -> dict[str, Floats]:
    draws = servers.posteriors[number]
    found = {str(name): draws[name].to_numpy() for name in draws.data_vars}
    combinations = servers.models[number].combinations(draws)
    return found | {str(name): combinations[name].to_numpy() for name in combinations.data_vars}


def _ratio(first: Floats, second: Floats, *, rope: float, probability: float) -> dict[str, Any]:
    levels = band_levels(probability)
    difference, ratio = first - second, first / second
    values = np.concatenate([np.quantile(difference, levels), np.quantile(ratio, levels)])
    names = (
        *("difference_lower", "difference", "difference_upper"),
        *("ratio_lower", "ratio_median", "ratio_upper"),
    )
    row: dict[str, Any] = dict(zip(names, map(float, values), strict=True))
    found = verdicts(np.array(row["ratio_lower"]), np.array(row["ratio_upper"]), rope=rope, words=VALUE_WORDS)
    order = (
        *("difference", "difference_lower", "difference_upper"),
        *("ratio_median", "ratio_lower", "ratio_upper"),
    )
    return {
        **{name: row[name] for name in order},
        "p_greater": float((difference > 0.0).mean()),
        "verdict": str(found),
    }
