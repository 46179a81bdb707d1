"""The statistics of a trace: columns that people ask for, summed up; kinds of steps; throughput."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

DECODE_ONLY, MIXED, PREFILL_ONLY = "decode only", "mixed", "prefill only"
REGIMES = (DECODE_ONLY, MIXED, PREFILL_ONLY)

QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}

QUANTITIES = {
    "schedule_ms": ("schedule time", "ms"),
    "latency_ms": ("model-run time", "ms"),
    "step_ms": ("step time", "ms"),
    "batch_size": ("requests a batch", "requests"),
    "num_prefill_reqs": ("prefill requests a batch", "requests"),
    "num_decode_reqs": ("decode requests a batch", "requests"),
    "prefill_share": ("prefill share of a batch", "share"),
    "total_tokens": ("tokens a batch", "tokens"),
    "mean_prefill_chunk": ("mean prefill chunk", "tokens"),
    "max_prefill_chunk": ("largest prefill chunk", "tokens"),
    "context_tokens": ("context of a batch", "tokens"),
    "num_waiting_reqs": ("waiting requests", "requests"),
    "num_running_reqs": ("running requests", "requests"),
    "kv_cache_usage": ("KV-cache use", "share"),
}
"""Columns of the prepared steps that are summed up: title and unit."""


def label(title: str, unit: str) -> str:
    """Name a quantity with its unit, where the title does not say it already."""
    return title if unit == "share" or unit in title else f"{title} ({unit})"


MISSING_WORDS = {
    "timestamp": "timestamps",
    "schedule_ms": "the schedule time",
    "prefill_tokens": "chunk sizes",
    "num_waiting_reqs": "the waiting queue",
    "num_running_reqs": "the running requests",
    "kv_cache_usage": "KV-cache use",
    "context_tokens": "context lengths",
}
"""Columns that a trace may lack, as a sentence names them."""


def prepared(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the steps that are not idle, with what follows from their columns.

    Parameters
    ----------
    steps : DataFrame
        As `bayes_sched.trace.read_trace` gives them.

    Returns
    -------
    DataFrame
        Steps with requests and tokens, rows counted from 0; with ``regime`` (categorical, `REGIMES`),
        ``prefill_share``, and where the columns allow ``mean_prefill_chunk`` (NaN where nothing is
        prefilled, as ``max_prefill_chunk``) and ``step_ms``: as recorded, else schedule plus model run, which
        it is as long as scheduling is synchronous.
    """
    kept = steps[(steps["batch_size"] > 0) & (steps["total_tokens"] > 0)].reset_index(drop=True)
    num_prefill = kept["num_prefill_reqs"].to_numpy(float)
    is_prefill, is_decode = num_prefill > 0, kept["num_decode_reqs"].to_numpy(float) > 0
    codes = np.where(~is_prefill, 0, np.where(is_decode, 1, 2))
    kept["regime"] = pd.Categorical.from_codes(codes.astype(np.int8), categories=pd.Index(REGIMES))
    kept["prefill_share"] = num_prefill / kept["batch_size"].to_numpy(float)
    if "prefill_tokens" in kept:
        sums = kept["prefill_tokens"].to_numpy(float)
        kept["mean_prefill_chunk"] = np.where(is_prefill, sums / np.maximum(num_prefill, 1.0), np.nan)
    if "max_prefill_chunk" in kept:
        kept["max_prefill_chunk"] = kept["max_prefill_chunk"].astype(float).where(is_prefill)
    if "schedule_ms" in kept:
        both_ms = kept["schedule_ms"].to_numpy(float) + kept["latency_ms"].to_numpy(float)
        recorded_ms = kept["step_ms"].to_numpy(float) if "step_ms" in kept else np.full(len(kept), np.nan)
        kept["step_ms"] = np.where(np.isnan(recorded_ms), both_ms, recorded_ms)
    return kept


def missing_columns(steps: pd.DataFrame) -> tuple[str, ...]:
    """Return which of the columns in `MISSING_WORDS` the trace does not hold."""
    return tuple(name for name in MISSING_WORDS if name not in steps)


def summary_table(steps: pd.DataFrame) -> pd.DataFrame:
    """Sum up the columns.

    Parameters
    ----------
    steps : DataFrame
        As `prepared` gives them.

    Returns
    -------
    DataFrame
        One row a quantity that the trace holds: ``quantity`` (the column), ``title``, ``unit``, ``steps``
        (that hold it), ``mean``, ``min``, ``p50``, ``p95``, ``p99``, ``max``.
    """
    rows = []
    for name, (title, unit) in QUANTITIES.items():
        if name not in steps:
            continue
        values = steps[name].to_numpy(float)
        values = values[np.isfinite(values)]
        if len(values):
            rows.append((name, title, unit, len(values), *_sums(values)))
    return pd.DataFrame(
        rows, columns=["quantity", "title", "unit", "steps", "mean", "min", *QUANTILES, "max"]
    )


def _sums(values: NDArray[np.float64]) -> tuple[float, ...]:
    quantiles = np.quantile(values, list(QUANTILES.values()))
    return (float(values.mean()), float(values.min()), *map(float, quantiles), float(values.max()))


def regime_table(steps: pd.DataFrame) -> pd.DataFrame:
    """Count the kinds of steps and say what they take.

    Parameters
    ----------
    steps : DataFrame
        As `prepared` gives them.

    Returns
    -------
    DataFrame
        One row a regime, those without a step included: ``regime``, ``steps``, ``share`` (of the steps),
        ``time_share`` (of the model-run time), ``tokens`` (sum), ``mean_ms``, ``p50_ms``, ``p95_ms``,
        ``p99_ms`` (of the model run; NaN without steps).
    """
    total_ms = float(steps["latency_ms"].sum())
    rows = []
    for regime in REGIMES:
        chosen = steps[steps["regime"] == regime]
        values = chosen["latency_ms"].to_numpy(float)
        mean_ms, _, p50_ms, p95_ms, p99_ms, _ = _sums(values) if len(values) else (math.nan,) * 6
        time_share = float(values.sum()) / total_ms if total_ms else math.nan
        share = len(chosen) / max(len(steps), 1)
        tokens = int(chosen["total_tokens"].sum())
        rows.append((regime, len(chosen), share, time_share, tokens, mean_ms, p50_ms, p95_ms, p99_ms))
    columns = ["regime", "steps", "share", "time_share", "tokens", "mean_ms", "p50_ms", "p95_ms", "p99_ms"]
    return pd.DataFrame(rows, columns=columns)


def throughput(steps: pd.DataFrame, elapsed_s: float) -> dict[str, float | None]:
    """Return what the server got done, and how much of its time went into scheduling.

    Parameters
    ----------
    steps : DataFrame
        As `prepared` gives them.
    elapsed_s : float
        Seconds that the trace covers; NaN where it tells no time.

    Returns
    -------
    dict
        None where the trace does not tell: ``tokens``, ``prefill_tokens`` and ``decode_tokens`` (sums);
        ``elapsed_s``; ``tokens_per_s``, ``decode_tokens_per_s``, ``steps_per_s`` (over the elapsed time);
        ``model_run_s`` (sum); ``tokens_per_model_run_s``; ``schedule_share`` (of the step time, sums).
    """
    tokens = float(steps["total_tokens"].sum())
    model_run_s = float(steps["latency_ms"].sum()) / 1e3
    prefill = float(steps["prefill_tokens"].sum()) if "prefill_tokens" in steps else math.nan
    share = math.nan
    if "schedule_ms" in steps:
        both = steps[["schedule_ms", "step_ms"]].dropna()
        share = _ratio(float(both["schedule_ms"].sum()), float(both["step_ms"].sum()))
    values = {
        "tokens": tokens,
        "prefill_tokens": prefill,
        "decode_tokens": tokens - prefill,
        "elapsed_s": elapsed_s,
        "tokens_per_s": _ratio(tokens, elapsed_s),
        "decode_tokens_per_s": _ratio(tokens - prefill, elapsed_s),
        "steps_per_s": _ratio(len(steps), elapsed_s),
        "model_run_s": model_run_s,
        "tokens_per_model_run_s": _ratio(tokens, model_run_s),
        "schedule_share": share,
    }
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _ratio(value: float, by: float) -> float:
    return value / by if by > 0 else math.nan


def slowest_steps(steps: pd.DataFrame, num: int) -> pd.DataFrame:
    """List the slowest steps.

    Parameters
    ----------
    steps : DataFrame
        As `prepared` gives them.
    num : int
        So many at most.

    Returns
    -------
    DataFrame
        The slowest first, by step time where the trace holds it, else by model run; all columns of the
        steps, and ``times_typical``: model run over the median of the steps of the same regime with about as
        many requests and tokens (powers of two). A large one is a hiccup, one near 1 only a large batch.
    """
    order = "step_ms" if "step_ms" in steps else "latency_ms"
    kind = [
        steps["regime"].cat.codes,
        np.floor(np.log2(steps["batch_size"])),
        np.floor(np.log2(steps["total_tokens"])),
    ]
    typical_ms = steps["latency_ms"].groupby(kind).transform("median")
    slowest = steps[order].nlargest(num).index
    with np.errstate(divide="ignore", invalid="ignore"):
        times_typical = steps.loc[slowest, "latency_ms"] / typical_ms[slowest]
    return steps.loc[slowest].assign(times_typical=times_typical).reset_index(drop=True)
