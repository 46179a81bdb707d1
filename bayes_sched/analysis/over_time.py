"""A trace in equal pieces of its time, for figures and for whoever draws their own."""

from __future__ import annotations

import numpy as np
import pandas as pd

MAX_BINS = 120
_STEPS_A_BIN = 30

QUANTILES = {"p5": 0.05, "p50": 0.5, "p95": 0.95}
_TIMES = ("schedule_ms", "latency_ms")
_LEVELS = ("num_waiting_reqs", "num_running_reqs", "kv_cache_usage")


def over_time(steps: pd.DataFrame) -> pd.DataFrame:
    """Sum up the steps in equal pieces of time, or of the number of steps where the trace tells no time.

    Parameters
    ----------
    steps : DataFrame
        As `bayes_sched.analysis.statistics.prepared` gives them, with ``time_s`` (s; NaN without timestamps).

    Returns
    -------
    DataFrame
        One row a piece that holds steps, at most `MAX_BINS`: ``from`` and ``to`` (s since the beginning of
        the trace, or numbers of steps), ``steps``, ``tokens`` and, where the trace holds them,
        ``prefill_tokens`` (sums); of the schedule time and the model run (``schedule_ms``, ``latency_ms``)
        ``NAME_p5``, ``NAME_p50``, ``NAME_p95``, ``NAME_max``, and the medians of the steps that only decode,
        ``NAME_decode``, and of those that prefill, ``NAME_prefill`` (NaN where there are none); of the
        waiting and running requests and the KV-cache use ``NAME_mean``, ``NAME_max``.
    """
    place = axis_of(steps).to_numpy(float)
    known = np.isfinite(place)
    steps, place = steps[known], place[known]
    num_bins = int(np.clip(len(steps) // _STEPS_A_BIN, 1, MAX_BINS))
    edges = np.linspace(place.min(), place.max(), num_bins + 1)
    codes = np.searchsorted(edges[1:-1], place, side="right")
    groups = steps.groupby(codes)
    columns = {"steps": groups.size(), "tokens": groups["total_tokens"].sum()}
    if "prefill_tokens" in steps:
        columns["prefill_tokens"] = groups["prefill_tokens"].sum()
    is_prefill = steps["num_prefill_reqs"].to_numpy(float) > 0
    kinds = {"decode": ~is_prefill, "prefill": is_prefill}
    for name in filter(steps.__contains__, _TIMES):
        for short, q in QUANTILES.items():
            columns[f"{name}_{short}"] = groups[name].quantile(q)
        columns[f"{name}_max"] = groups[name].max()
        for kind, chosen in kinds.items():
            columns[f"{name}_{kind}"] = steps.loc[chosen, name].groupby(codes[chosen]).median()
    for name in filter(steps.__contains__, _LEVELS):
        columns |= {f"{name}_mean": groups[name].mean(), f"{name}_max": groups[name].max()}
    table = pd.DataFrame(columns)
    bins = table.index.to_numpy()
    table.insert(0, "from", edges[bins])
    table.insert(1, "to", edges[bins + 1])
    return table.reset_index(drop=True)


def axis_of(steps: pd.DataFrame) -> pd.Series:
    """Return where each step lies: seconds, or the numbers of the steps where the trace tells no time."""
    if steps["time_s"].notna().any():
        return steps["time_s"]
    return pd.Series(np.arange(1.0, len(steps) + 1.0), index=steps.index)
