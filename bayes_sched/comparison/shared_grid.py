"""The steps over which servers are compared: a grid over what any trace holds, and a few typical steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from bayes_sched.comparison.paired import Servers
from bayes_sched.errors import InputError
from bayes_sched.fitted import FittedModel
from bayes_sched.numbers import listed
from bayes_sched.steps import POSSIBLE, steps_grid

NUM_BATCH_SIZES, NUM_TOKENS = 14, 20
"""Points of the grid along each axis, unless told otherwise."""
_NUM_ADDED = 8
NEAR = 0.25
"""Steps whose log B and log S are within this of another step's are like it."""

MEDIAN_DECODE, LARGEST_DECODE, FULL_STEP = "median decode step", "largest decode step", "largest step"

type Floats = NDArray[np.float64]


def shared_grid(
    servers: Servers, *, batch_size: ArrayLike | None = None, total_tokens: ArrayLike | None = None
) -> xr.Dataset:
    """Return a grid of steps, logarithmic over the range of all traces unless given.

    Parameters
    ----------
    servers : Servers
    batch_size, total_tokens : array-like, optional
        Requests and tokens of the grid.

    Returns
    -------
    Dataset, dims (batch_size, total_tokens)
        ``possible``, ``in_region`` (gpu, batch_size, total_tokens), ``extrapolation``: not in the region of
        every trace, and ``fewest_like``: steps like it in the trace that has the fewest.

    Raises
    ------
    InputError
        No step lies in the regions of all traces.
    """
    shared = shared_cells(servers)
    tokens = np.concatenate([fit.cells["total_tokens"].to_numpy() for fit in servers.fits])
    requests = np.concatenate([fit.cells["batch_size"].to_numpy() for fit in servers.fits])
    b = _log_points(requests, NUM_BATCH_SIZES) if batch_size is None else np.asarray(batch_size, float)
    s = (
        np.union1d(_log_points(tokens, NUM_TOKENS), b)
        if total_tokens is None
        else np.asarray(total_tokens, float)
    )
    grid = marked(servers, steps_grid(batch_size=b, total_tokens=s))
    if not _is_any_shared(grid) and not shared.empty and batch_size is None and total_tokens is None:
        few = shared.iloc[np.unique(np.linspace(0, len(shared) - 1, _NUM_ADDED).astype(int))]
        added = steps_grid(
            batch_size=np.union1d(b, few["batch_size"]), total_tokens=np.union1d(s, few["total_tokens"])
        )
        grid = marked(servers, added)
    if not _is_any_shared(grid):
        texts = [
            f"{label}: {fit.region.text}" for label, fit in zip(servers.labels, servers.fits, strict=True)
        ]
        raise InputError(
            f"no step lies where all traces have data, there is nothing to compare. {' '.join(texts)}"
        )
    return grid


def marked(servers: Servers, steps: xr.Dataset) -> xr.Dataset:
    """Return steps with what the traces know of them.

    Returns
    -------
    Dataset
        `steps` with ``in_region`` (also dim gpu), ``extrapolation``: possible, but not in the region of every
        trace, and ``fewest_like``: steps like it in the trace that has the fewest.
    """
    in_region = servers.in_regions(steps).reset_coords(drop=True)
    b, s = xr.broadcast(steps["batch_size"], steps["total_tokens"])
    fewest = np.min([like_steps(fit, b.to_numpy(), s.to_numpy()) for fit in servers.fits], axis=0)
    is_possible = steps.get(POSSIBLE, True)
    return steps.assign(
        in_region=in_region.assign_coords(gpu=list(servers.labels)),
        extrapolation=~in_region.all("gpu") & is_possible,
        fewest_like=b.copy(data=fewest).reset_coords(drop=True),
    )


def _is_any_shared(grid: xr.Dataset) -> bool:
    return bool(grid["in_region"].all("gpu").any())


def _log_points(values: NDArray[np.generic], num: int) -> Floats:
    """Return whole numbers over the range of the values, evenly spread on a logarithmic scale."""
    points: Floats = np.unique(np.rint(np.geomspace(float(values.min()), float(values.max()), num)))
    return points


def shared_cells(servers: Servers) -> pd.DataFrame:
    """Return the seen (B, S) that the regions of all traces cover.

    Returns
    -------
    DataFrame
        ``batch_size``, ``total_tokens``, ``count``: steps in all traces together, and ``weight``: their
        share, every trace counting alike.
    """
    tables = [cell_table(fit) for fit in servers.fits]
    seen = pd.concat([table.assign(weight=table["count"] / table["count"].sum()) for table in tables])
    cells = seen.groupby(["batch_size", "total_tokens"], as_index=False)[["count", "weight"]].sum()
    is_shared = servers.in_regions(cells).all("gpu").to_numpy()
    return cells[is_shared].reset_index(drop=True)


def cell_table(fit: FittedModel) -> pd.DataFrame:
    """Return the seen (B, S) of a fit and how many steps each holds."""
    names = ("batch_size", "total_tokens", "count")
    return pd.DataFrame({name: fit.cells[name].to_numpy() for name in names})


def typical_shared_steps(shared: pd.DataFrame) -> pd.DataFrame:
    """Return a few steps that a person knows, out of those where all traces have data.

    Parameters
    ----------
    shared : DataFrame
        Of :func:`shared_cells`.

    Returns
    -------
    DataFrame
        ``step`` (in words), ``batch_size``, ``total_tokens``; empty if no seen step is covered by all.
    """
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


def like_steps(
    fit: FittedModel, batch_size: NDArray[np.generic], total_tokens: NDArray[np.generic]
) -> Floats:
    """Return how many steps of a trace are like each of some steps, the arguments' shape.

    Like means that B and S are within a factor of about 1.3 (:data:`NEAR` on the logarithms).
    """
    cells = cell_table(fit)
    places = np.log(np.stack([batch_size, total_tokens], axis=-1).astype(float))[..., None, :]
    seen = np.log(cells[["batch_size", "total_tokens"]].to_numpy(float))
    is_like = (np.abs(places - seen) < NEAR).all(axis=-1)
    found: Floats = is_like @ cells["count"].to_numpy(float)
    return found


def region_text(labels: Sequence[str], grid: xr.Dataset) -> str:
    """Say which part of the grid all traces cover."""
    shared = grid["in_region"].all("gpu")
    b = grid["batch_size"].where(shared.any("total_tokens"), drop=True)
    s = grid["total_tokens"].where(shared.any("batch_size"), drop=True)
    return (
        f"The traces of {listed(list(labels))} share {int(shared.sum()):,} of "
        f"{int(grid[POSSIBLE].sum()):,} points of the grid: {int(b.min()):,} to {int(b.max()):,} requests, "
        f"{int(s.min()):,} to {int(s.max()):,} tokens a step, not in every combination; elsewhere at least "
        "one server is extrapolated."
    )
