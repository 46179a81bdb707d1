"""Which further data would decide what is undecided."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sched.comparison.shared_grid import NEAR, like_steps
from bayes_sched.comparison.verdicts import UNDECIDED, data_factor
from bayes_sched.fitted import FittedModel


def wanted_data(
    table: pd.DataFrame, maps: xr.Dataset, fits: dict[str, FittedModel], *, rope: float, num: int = 5
) -> pd.DataFrame:
    """Return which further steps would decide what is undecided: where the interval is widest.

    Parameters
    ----------
    table : DataFrame
        Of :func:`pair_rows`.
    maps : Dataset
        Of :func:`latency_maps`, over the grid.
    fits : dict of str to FittedModel
        By label.
    rope : float
    num : int
        Steps of each pair, at most; they lie apart from each other.

    Returns
    -------
    DataFrame
        ``gpu``, ``other``, ``batch_size``, ``total_tokens``, ``ratio_median``, ``ratio_lower``,
        ``ratio_upper``, ``width`` (upper over lower, less 1), ``measure`` (the server known less well there),
        ``steps_seen`` (steps like it in that server's trace), ``times_data`` (how many times the data would
        decide, roughly; missing where even a hundred times would not).
    """
    open_rows = table[(table["verdict"] == UNDECIDED) & ~table["extrapolation"]].copy()
    open_rows["width"] = open_rows["ratio_upper"] / open_rows["ratio_lower"] - 1.0
    rows = []
    for (first, second), group in open_rows.groupby(["gpu", "other"], sort=False):
        for row in _apart(group.sort_values("width", ascending=False), num).to_dict("records"):
            at = {"batch_size": row["batch_size"], "total_tokens": row["total_tokens"]}
            spread = maps["log_sd"].sel(at)
            measure = max((str(first), str(second)), key=lambda label: float(spread.sel(gpu=label)))
            rows.append(
                {
                    "gpu": first,
                    "other": second,
                    **at,
                    **{name: row[name] for name in ("ratio_median", "ratio_lower", "ratio_upper", "width")},
                    "measure": measure,
                    "steps_seen": int(like_steps(fits[measure], *(np.array(value) for value in at.values()))),
                    "times_data": data_factor(
                        row["ratio_lower"], row["ratio_median"], row["ratio_upper"], rope=rope
                    ),
                }
            )
    return pd.DataFrame(rows, columns=WANTED_COLUMNS).astype({"times_data": float})


WANTED_COLUMNS = [
    *("gpu", "other", "batch_size", "total_tokens", "ratio_median", "ratio_lower", "ratio_upper"),
    *("width", "measure", "steps_seen", "times_data"),
]


def _apart(rows: pd.DataFrame, num: int) -> pd.DataFrame:
    """Return the first rows that are not like one before them."""
    places = np.log(rows[["batch_size", "total_tokens"]].to_numpy(float))
    kept: list[int] = []
    for i, place in enumerate(places):
        if len(kept) < num and all(np.abs(place - places[k]).max() > 2.0 * NEAR for k in kept):
            kept.append(i)
    return rows.iloc[kept]
