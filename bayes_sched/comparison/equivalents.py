"""How many decoding requests one server serves in the time that another takes for so many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from bayes_sched.comparison.paired import Servers
from bayes_sched.comparison.verdicts import Floats
from bayes_sched.numbers import number
from bayes_sched.prediction import band_levels
from bayes_sched.steps import steps_arrays

_REACH = 4.0
"""The search ends at this many times the most requests seen on any server."""
_NUM_POINTS = 300

COLUMNS = ["gpu", "batch_size", "other", "median", "lower", "upper", "limit", "extrapolation"]


def equivalent_table(servers: Servers, *, probability: float) -> pd.DataFrame:
    """Return for decode-only steps of one server the equally long ones of every other.

    The number N on the other server is the largest whose mean latency is at most that of n requests on the
    first; between whole numbers it is interpolated. 0 means that not even one request is served so fast.

    Parameters
    ----------
    servers : Servers
    probability : float
        Of the credible interval, equal tails.

    Returns
    -------
    DataFrame
        ``gpu``, ``batch_size`` (n), ``other``, ``median``, ``lower``, ``upper`` (N; NaN where it is more than
        ``limit``, at which the search ends), ``extrapolation`` (n or the median N lies outside of what its
        trace covers).
    """
    largest = max(float(fit.cells["batch_size"].max()) for fit in servers.fits)
    points = np.unique(np.concatenate([np.arange(1.0, 33.0), _spread(1.0, _REACH * largest)]))
    latency_ms = [
        servers.server_latency_ms(i, steps_arrays(points, points)).transpose("draw", "step").to_numpy()
        for i in range(len(servers.labels))
    ]
    seen = [fit.in_region(steps_arrays(points, points)).to_numpy() for fit in servers.fits]
    rows = []
    for first, label in enumerate(servers.labels):
        for n in _asked(servers, first):
            at = int(np.searchsorted(points, n))
            for second, other in enumerate(servers.labels):
                if second == first:
                    continue
                found = largest_within(points, latency_ms[second], latency_ms[first][:, at])
                lower, median, upper = np.quantile(found, band_levels(probability), method="inverted_cdf")
                is_seen = seen[first][at] and seen[second][_nearest(points, median)]
                rows.append((label, n, other, median, lower, upper, float(points[-1]), not is_seen))
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.replace({"median": {np.inf: np.nan}, "lower": {np.inf: np.nan}, "upper": {np.inf: np.nan}})


def largest_within(points: Floats, latency_ms: Floats, limit_ms: Floats) -> Floats:
    """Return the largest number of requests whose latency is within a limit.

    Parameters
    ----------
    points : ndarray, dims (point,)
        Requests, increasing.
    latency_ms : ndarray, dims (draw, point)
    limit_ms : ndarray, dims (draw,)

    Returns
    -------
    ndarray, dims (draw,)
        Interpolated linearly; 0 where no point is within the limit, inf where the last one is.
    """
    is_within = latency_ms <= limit_ms[:, None]
    last = len(points) - 1 - np.argmax(is_within[:, ::-1], axis=1)
    following = np.minimum(last + 1, len(points) - 1)
    draw = np.arange(len(limit_ms))
    rise = latency_ms[draw, following] - latency_ms[draw, last]
    share = (limit_ms - latency_ms[draw, last]) / np.where(rise > 0.0, rise, 1.0)
    between = points[last] + share * (points[following] - points[last])
    result: Floats = np.where(is_within[:, -1], np.inf, np.where(is_within.any(axis=1), between, 0.0))
    return result


def equivalent_sentence(row: Mapping[str, Any]) -> str:
    """Return a row of the table in words."""
    limit = row["limit"]

    def shown(value: float | None) -> str:
        if value is None:
            return f"more than {limit:,.0f}"
        return "less than 1" if value == 0 else number(value)

    cost = "costs" if row["batch_size"] == 1 else "cost"
    decodes = "decode" if row["batch_size"] == 1 else "decodes"
    note = "; an extrapolation" if row["extrapolation"] else ""
    return (
        f"{row['batch_size']:,} {decodes} on {row['gpu']} {cost} what {shown(row['median'])} on "
        f"{row['other']} do ({shown(row['lower'])} to {shown(row['upper'])}{note})"
    )


def _asked(servers: Servers, first: int) -> list[int]:
    """Return the powers of two up to 32, and further as far as the trace of a server goes."""
    largest = max(32.0, float(servers.fits[first].cells["batch_size"].max()))
    return [2**k for k in range(int(np.log2(largest)) + 1)]


def _spread(low: float, high: float) -> Floats:
    powers = 2.0 ** np.arange(0, np.floor(np.log2(high)) + 1)
    points: Floats = np.union1d(np.rint(np.geomspace(low, high, _NUM_POINTS)), powers)
    return points


def _nearest(points: Floats, value: float) -> int:
    return int(np.argmin(np.abs(points - (value if np.isfinite(value) else points[-1]))))
