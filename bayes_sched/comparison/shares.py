"""How often which verdict is given: over the grid, where there are data, and over what the servers do."""

from __future__ import annotations

import pandas as pd

from bayes_sched.comparison.latencies import pairs_of
from bayes_sched.comparison.paired import Servers
from bayes_sched.comparison.verdicts import EQUIVALENT, LATENCY_WORDS, UNDECIDED, verdicts
from bayes_sched.prediction import band_levels

MIN_LIKE = 10
"""A step counts as measured where every trace holds so many steps like it."""
ON_GRID, MEASURED, IN_TRACES = "covered steps", "measured steps", "steps of the traces"
"""What shares of verdicts are of."""


def share_table(table: pd.DataFrame, seen: pd.DataFrame) -> pd.DataFrame:
    """Return how often each verdict is given where all traces have data.

    Parameters
    ----------
    table : DataFrame
        Of :func:`pair_rows`, over the grid.
    seen : DataFrame
        Of :func:`seen_rows`.

    Returns
    -------
    DataFrame
        Up to three rows a pair: ``gpu``, ``other``, ``of``, ``num_steps`` (distinct ones), the shares
        ``faster``, ``slower``, ``equivalent``, ``undecided``, and ``ratio_smallest``, ``ratio_largest`` of
        the medians. ``of`` says of what: the covered steps of the grid; those of them like which every trace
        holds at least :data:`MIN_LIKE`; and the steps of the traces, as often as they occur.
    """
    rows = []
    covered = table[~table["extrapolation"]].assign(weight=1.0)
    chosen = {
        ON_GRID: covered,
        MEASURED: covered[covered["fewest_like"] >= MIN_LIKE],
        IN_TRACES: seen,
    }
    for first, second in table[["gpu", "other"]].drop_duplicates().itertuples(index=False):
        for of, rows_of in chosen.items():
            group = rows_of[(rows_of["gpu"] == first) & (rows_of["other"] == second)]
            if group.empty:
                continue
            weights = group.groupby("verdict")["weight"].sum() / group["weight"].sum()
            words = (*LATENCY_WORDS, EQUIVALENT, UNDECIDED)
            rows.append(
                {
                    "gpu": first,
                    "other": second,
                    "of": of,
                    "num_steps": len(group),
                    **{word: float(weights.get(word, 0.0)) for word in words},
                    "ratio_smallest": float(group["ratio_median"].min()),
                    "ratio_largest": float(group["ratio_median"].max()),
                }
            )
    return pd.DataFrame(rows)


def seen_rows(servers: Servers, cells: pd.DataFrame, *, rope: float, probability: float) -> pd.DataFrame:
    """Return the verdict at each (B, S) that some trace holds and all cover.

    Parameters
    ----------
    servers : Servers
    cells : DataFrame
        ``batch_size``, ``total_tokens``, ``weight``.
    rope, probability : float

    Returns
    -------
    DataFrame
        The columns of `cells`, ``gpu``, ``other``, ``ratio_median``, ``verdict``: one row a pair and cell.
    """
    if cells.empty:
        return pd.DataFrame(columns=[*cells.columns, "gpu", "other", "ratio_median", "verdict"])
    mean_ms = servers.mean_latency_ms(cells)
    tables = []
    for a, b in pairs_of(servers.labels):
        ratio = mean_ms.isel(gpu=a) / mean_ms.isel(gpu=b)
        lower, median, upper = ratio.quantile(band_levels(probability), dim="draw").to_numpy()
        tables.append(
            cells.assign(
                gpu=servers.labels[a],
                other=servers.labels[b],
                ratio_median=median,
                verdict=verdicts(lower, upper, rope=rope),
            )
        )
    return pd.concat(tables, ignore_index=True)
