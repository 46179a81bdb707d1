"""The latencies of several servers: over a grid that all traces share, at typical steps, and as bands.

The grid is logarithmic over the range of all traces. A step is covered where it lies in the region of every
trace; elsewhere at least one server is extrapolated, and that is marked.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy import special

from bayes_sched.arrays import Floats
from bayes_sched.comparison.members import Servers, cell_table
from bayes_sched.comparison.verdicts import UNDECIDED, data_factor, verdicts
from bayes_sched.errors import InputError
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.prediction import band_levels, component_cdf
from bayes_sched.posterior.typical_steps import LARGEST_DECODE, MEDIAN_DECODE
from bayes_sched.steps import POSSIBLE, Steps, log_grid, steps_arrays, steps_grid

FULL_STEP = "largest step"

_NUM_BATCH_SIZES, _NUM_TOKENS = 14, 20  # points of the grid along each axis, unless given
_NUM_ADDED = 8
_NUM_FINE = 140  # of the outline of the regions, along each axis
_NUM_BAND = 60
_NEAR = 0.25  # steps whose log B and log S are within this of another step's are like it
_NUM_FURTHER = 5  # steps of each pair that are named as worth further data

_KINDS: Any = {"batch_size": int, "total_tokens": int, "extrapolation": bool, "fewest_like": int}
_RATIO = ("ratio_median", "ratio_lower", "ratio_upper")
_PAIR_VALUES = (*_RATIO, "own_ratio", "p_faster", "p_step_faster", "verdict")
PAIR_COLUMNS = ["gpu", "other", *_KINDS, "gpu_ms", "other_ms", *_PAIR_VALUES]
FURTHER_COLUMNS = [
    *("gpu", "other", "batch_size", "total_tokens", *_RATIO, "width", "measure", "steps_seen", "times_data")
]


def shared_grid(
    servers: Servers, *, batch_size: ArrayLike | None = None, total_tokens: ArrayLike | None = None
) -> xr.Dataset:
    """Return the grid, as :func:`marked` marks it, over given requests and tokens or over all traces'."""
    shared, seen = shared_cells(servers), seen_steps(servers)
    requests = _over(seen["batch_size"], _NUM_BATCH_SIZES)
    b = requests if batch_size is None else np.asarray(batch_size, float)
    tokens = np.union1d(_over(seen["total_tokens"], _NUM_TOKENS), b)
    s = tokens if total_tokens is None else np.asarray(total_tokens, float)
    grid = marked(servers, steps_grid(batch_size=b, total_tokens=s))
    if not _is_any_shared(grid) and not shared.empty and batch_size is None and total_tokens is None:
        few = shared.iloc[np.unique(np.linspace(0, len(shared) - 1, _NUM_ADDED).astype(int))]
        b, s = np.union1d(b, few["batch_size"]), np.union1d(s, few["total_tokens"])
        grid = marked(servers, steps_grid(batch_size=b, total_tokens=s))
    if not _is_any_shared(grid):
        texts = [f"{label}: {fit.region.text}" for label, fit in servers.fits.items()]
        raise InputError(
            f"no step lies where all traces have data, there is nothing to compare. {' '.join(texts)}"
        )
    return grid


def marked(servers: Servers, steps: xr.Dataset) -> xr.Dataset:
    """Return steps with what the traces know of them.

    ``in_region`` (also dim gpu), ``extrapolation``: possible, but not in the region of every trace, and
    ``fewest_like``: steps like it in the trace that has the fewest.
    """
    b, s = xr.broadcast(steps["batch_size"], steps["total_tokens"])
    fewest = np.min([like_steps(fit, b.to_numpy(), s.to_numpy()) for fit in servers.fits.values()], axis=0)
    in_region = servers.in_regions(steps).reset_coords(drop=True)
    return steps.assign(
        in_region=in_region.assign_coords(gpu=list(servers.labels)),
        extrapolation=~in_region.all("gpu") & steps.get(POSSIBLE, True),
        fewest_like=b.copy(data=fewest).reset_coords(drop=True),
    )


def like_steps(
    fit: FittedModel, batch_size: NDArray[np.generic], total_tokens: NDArray[np.generic]
) -> Floats:
    """Return how many steps of a trace are like each of some: B and S within a factor of about 1.3."""
    cells = cell_table(fit)
    places = np.log(np.stack([batch_size, total_tokens], axis=-1).astype(float))[..., None, :]
    seen = np.log(cells[["batch_size", "total_tokens"]].to_numpy(float))
    is_like = (np.abs(places - seen) < _NEAR).all(axis=-1)
    found: Floats = is_like @ cells["count"].to_numpy(float)
    return found


def _is_any_shared(grid: xr.Dataset) -> bool:
    return bool(grid["in_region"].all("gpu").any())


def _over(values: pd.Series[Any], num: int) -> Floats:
    return log_grid(float(values.min()), float(values.max()), num)


def seen_steps(servers: Servers) -> pd.DataFrame:
    """Return the (B, S) that any of the traces holds, in the order of the servers."""
    return pd.concat([cell_table(fit) for fit in servers.fits.values()])


def shared_cells(servers: Servers) -> pd.DataFrame:
    """Return the seen (B, S) that the regions of all traces cover.

    ``count``: steps in all traces together; ``weight``: their share, every trace counting alike.
    """
    tables = [cell_table(fit) for fit in servers.fits.values()]
    seen = pd.concat([table.assign(weight=table["count"] / table["count"].sum()) for table in tables])
    cells = seen.groupby(["batch_size", "total_tokens"], as_index=False)[["count", "weight"]].sum()
    is_shared = servers.in_regions(cells).all("gpu").to_numpy()
    return cells[is_shared].reset_index(drop=True)


def typical_shared_steps(shared: pd.DataFrame) -> pd.DataFrame:
    """Return a few of the shared cells that a person knows: ``step`` (in words), requests and tokens."""
    rows: list[tuple[str, int, int]] = []
    decodes = shared[shared["batch_size"] == shared["total_tokens"]].sort_values("batch_size")
    if len(decodes):
        position = int(np.searchsorted(decodes["count"].cumsum(), 0.5 * decodes["count"].sum()))
        median, largest = int(decodes["batch_size"].iloc[position]), int(decodes["batch_size"].iloc[-1])
        rows.append((MEDIAN_DECODE, median, median))
        if largest > median:
            rows.append((LARGEST_DECODE, largest, largest))
    mixed = shared[shared["total_tokens"] > shared["batch_size"]]
    if len(mixed):
        full = mixed[mixed["total_tokens"] == mixed["total_tokens"].max()].sort_values("count").iloc[-1]
        rows.append((FULL_STEP, int(full["batch_size"]), int(full["total_tokens"])))
    return pd.DataFrame(rows, columns=["step", "batch_size", "total_tokens"])


def latency_maps(
    servers: Servers, steps: Steps, mean_ms: xr.DataArray, *, rope: float, probability: float, seed: int
) -> xr.Dataset:
    """Compare the latencies of each pair of servers at each step, of which `mean_ms` are the mean latencies.

    Dims (gpu, *steps): ``mean_lower_ms``, ``mean_median_ms``, ``mean_upper_ms``; ``log_sd``, standard
    deviation of the logarithm of the mean latency; ``p_fastest``, probability that no other server is faster
    on average. Dims (pair, *steps), with coordinates ``first`` and ``second``: ``ratio_lower``,
    ``ratio_median``, ``ratio_upper`` of the first one's mean latency over the second one's; ``p_faster``,
    that it is below 1; ``p_step_faster``, that a single step is faster on the first; ``verdict``.
    """
    quantiles = mean_ms.quantile(band_levels(probability), dim="draw", skipna=False)
    is_step = ~np.isnan(mean_ms.isel(gpu=0, draw=0, drop=True))
    maps = xr.Dataset(
        {
            **_three(quantiles, "mean_{}_ms", "ms"),
            "log_sd": mean_ms.copy(data=np.log(mean_ms.to_numpy())).std("draw"),
            "p_fastest": (mean_ms == mean_ms.min("gpu")).mean("draw").where(is_step),
        }
    )
    scale_ms, nu = servers.scale_ms(steps), servers.nu()
    pairs = list(combinations(servers.labels, 2))
    parts = []
    for pair in pairs:
        means = mean_ms.sel(gpu=list(pair))
        first, second = (means.isel(gpu=i, drop=True) for i in (0, 1))
        ratio = (first / second).quantile(band_levels(probability), dim="draw", skipna=False)
        p_step_faster = _step_faster(means, scale_ms.sel(gpu=list(pair)), nu.sel(gpu=list(pair)), seed=seed)
        parts.append(
            xr.Dataset(
                {
                    **_three(ratio, "ratio_{}", "1"),
                    "p_faster": (first < second).mean("draw"),
                    "p_step_faster": p_step_faster,
                }
            ).where(is_step)
        )
    joined = xr.concat(parts, dim=pd.Index([" / ".join(pair) for pair in pairs], name="pair"), join="exact")
    firsts, seconds = (list(labels) for labels in zip(*pairs, strict=True))
    joined = joined.assign_coords(first=("pair", firsts), second=("pair", seconds))
    first, second = (servers.own_factors(steps).sel(gpu=joined[end]) for end in ("first", "second"))
    factors = (first / second).reset_coords(drop=True)
    found, is_withdrawn = own_verdicts(joined["ratio_lower"], joined["ratio_upper"], factors, rope=rope)
    return maps.merge(
        joined.assign(
            verdict=found,
            own_ratio=joined["ratio_median"] * factors,
            p_faster=joined["p_faster"].where(~is_withdrawn),
            p_step_faster=joined["p_step_faster"].where(~is_withdrawn),
        )
    )


def own_verdicts(
    lower: xr.DataArray, upper: xr.DataArray, factors: xr.DataArray, *, rope: float
) -> tuple[xr.DataArray, xr.DataArray]:
    """Return verdicts, and where they were withdrawn: what the traces' own medians give another is undecided.

    `factors` make the ratio that of the traces where they contradict a fit.
    """
    factors = factors.transpose(*lower.dims)
    found = verdicts(lower.to_numpy(), upper.to_numpy(), rope=rope)
    seen = verdicts((lower * factors).to_numpy(), (upper * factors).to_numpy(), rope=rope)
    is_withdrawn = (found != seen) & (found != UNDECIDED)
    return lower.copy(data=np.where(is_withdrawn, UNDECIDED, found)), lower.copy(data=is_withdrawn)


def _three(quantiles: xr.DataArray, name: str, unit: str) -> dict[str, xr.DataArray]:
    return {
        name.format(part): quantiles.isel(quantile=i, drop=True).assign_attrs(units=unit)
        for i, part in enumerate(("lower", "median", "upper"))
    }


def _step_faster(
    mean_ms: xr.DataArray, scale_ms: xr.DataArray, nu: xr.DataArray, *, seed: int
) -> xr.DataArray:
    """Return the predictive probability that a step on the first of two servers beats one on the second.

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


def pair_rows(maps: xr.Dataset, steps: xr.Dataset) -> pd.DataFrame:
    """Return the maps of marked steps as a table with `PAIR_COLUMNS`, one row a pair and possible step.

    ``gpu_ms``, ``other_ms`` are medians of the mean latency, ``own_ratio`` the ratio with the traces' own
    medians where they contradict a fit; ``p_faster`` is missing where they give another verdict.
    """
    tables = []
    for first, second in zip(maps["first"].to_numpy(), maps["second"].to_numpy(), strict=True):
        medians = {
            name: maps["mean_median_ms"].sel(gpu=label, drop=True)
            for name, label in (("gpu_ms", first), ("other_ms", second))
        }
        one = maps[list(_PAIR_VALUES)].sel(pair=f"{first} / {second}").reset_coords(drop=True)
        values = one.assign({name: steps[name] for name in _KINDS} | medians)
        table = values.to_dataframe(dim_order=list(one["ratio_median"].dims)).reset_index()
        tables.append(table[table["ratio_median"].notna()].assign(gpu=str(first), other=str(second)))
    return pd.concat(tables, ignore_index=True)[PAIR_COLUMNS].astype(_KINDS)


def typical_rows(
    servers: Servers, typical: pd.DataFrame, *, rope: float, probability: float, seed: int
) -> pd.DataFrame:
    """Return the rows of :func:`pair_rows` for typical steps, ``step`` first."""
    if typical.empty:
        return pd.DataFrame(columns=["step", *PAIR_COLUMNS])
    steps = steps_arrays(typical["batch_size"], typical["total_tokens"])
    mean_ms = servers.mean_latency_ms(steps)
    maps = latency_maps(servers, steps, mean_ms, rope=rope, probability=probability, seed=seed)
    rows = pair_rows(maps, marked(servers, steps))
    names = typical.set_index(["batch_size", "total_tokens"])["step"]
    cells = pd.MultiIndex.from_frame(rows[["batch_size", "total_tokens"]])
    rows.insert(0, "step", names.loc[cells].to_numpy())
    return rows


def seen_rows(servers: Servers, cells: pd.DataFrame, *, rope: float, probability: float) -> pd.DataFrame:
    """Return `cells` with ``gpu``, ``other``, ``ratio_median``, ``verdict``: one row a pair and cell."""
    if cells.empty:
        return pd.DataFrame(columns=[*cells.columns, "gpu", "other", "ratio_median", "verdict"])
    mean_ms, own = servers.mean_latency_ms(cells), servers.own_factors(cells)
    tables = []
    for first, second in combinations(servers.labels, 2):
        ratio = mean_ms.sel(gpu=first) / mean_ms.sel(gpu=second)
        lower, median, upper = ratio.quantile(band_levels(probability), dim="draw")
        factors = own.sel(gpu=first, drop=True) / own.sel(gpu=second, drop=True)
        verdict, _ = own_verdicts(lower, upper, factors, rope=rope)
        told = {"ratio_median": median.to_numpy(), "verdict": verdict.to_numpy()}
        tables.append(cells.assign(gpu=first, other=second, **told))
    return pd.concat(tables, ignore_index=True)


def further_data(servers: Servers, table: pd.DataFrame, maps: xr.Dataset, *, rope: float) -> pd.DataFrame:
    """Return the value of further data: the steps where the interval of an undecided ratio is widest.

    ``width`` is upper over lower, less 1; ``measure``, the server known less well there; ``steps_seen``, the
    steps like it in that server's trace; ``times_data``, how many times the data would decide, roughly
    (missing where even a hundred times would not). The steps of a pair lie apart from each other.
    """
    open_rows = table[(table["verdict"] == UNDECIDED) & ~table["extrapolation"]].copy()
    open_rows["width"] = open_rows["ratio_upper"] / open_rows["ratio_lower"] - 1.0
    rows = []
    for pair, group in open_rows.groupby(["gpu", "other"], sort=False):
        for row in _apart(group.sort_values("width", ascending=False)).to_dict("records"):
            at = {"batch_size": row["batch_size"], "total_tokens": row["total_tokens"]}
            spread = maps["log_sd"].sel(at)
            measure = max(map(str, pair), key=lambda label: float(spread.sel(gpu=label)))
            like = like_steps(servers.fits[measure], *(np.array(value) for value in at.values()))
            times = data_factor(row["ratio_lower"], row["ratio_median"], row["ratio_upper"], rope=rope)
            rows.append({**row, "measure": measure, "steps_seen": int(like), "times_data": times})
    return pd.DataFrame(rows, columns=FURTHER_COLUMNS).astype({"times_data": float})


def _apart(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the first few rows that are not like one before them."""
    places = np.log(rows[["batch_size", "total_tokens"]].to_numpy(float))
    chosen: list[int] = []
    for i, place in enumerate(places):
        if len(chosen) < _NUM_FURTHER and all(np.abs(place - places[k]).max() > 2.0 * _NEAR for k in chosen):
            chosen.append(i)
    return rows.iloc[chosen]


def outline(servers: Servers, grid: xr.Dataset) -> xr.Dataset:
    """Return a fine grid over the range of `grid` with ``extrapolation``: some trace holds no such steps."""
    axes = {
        name: np.geomspace(float(grid[name].min()), float(grid[name].max()), _NUM_FINE)
        for name in ("batch_size", "total_tokens")
    }
    fine = steps_grid(**axes)
    return fine.assign(extrapolation=~servers.in_regions(fine).all("gpu"))


def latency_bands(servers: Servers, typical: pd.DataFrame, *, probability: float) -> dict[str, xr.Dataset]:
    """Return bands of ``decode`` steps, and of ``mixed`` ones with the requests of the largest shared step.

    Each has dims (gpu, step): ``batch_size``, ``total_tokens``, ``mean_ms``, ``extrapolation``, and of single
    steps ``lower_ms``, ``upper_ms``.
    """
    largest = typical.loc[typical["step"] == FULL_STEP, "batch_size"]
    b = int(largest.iloc[0]) if len(largest) else 1
    seen = seen_steps(servers)
    requests = _over(seen["batch_size"], _NUM_BAND)
    tokens = _over(seen["total_tokens"].clip(lower=b), _NUM_BAND)
    chosen = {"decode": steps_arrays(requests, requests), "mixed": steps_arrays(b, tokens)}
    return {name: _bands(servers, steps, probability) for name, steps in chosen.items()}


def _bands(servers: Servers, steps: xr.Dataset, probability: float) -> xr.Dataset:
    parts = []
    for fit in servers.fits.values():
        single = fit.predictive_band(steps, probability=probability)
        mean = fit.mean_band(steps, probability=probability)["median"]
        ends = {"mean_ms": mean, "lower_ms": single["lower"], "upper_ms": single["upper"]}
        parts.append(single[["extrapolation"]].assign(ends))
    return xr.concat(parts, dim=pd.Index(servers.labels, name="gpu"), join="exact")
