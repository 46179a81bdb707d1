"""What a trace says without any model: statistics, kinds of steps, throughput, slowest steps, findings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from msgspec import to_builtins

from bayes_sched.arrays import Floats
from bayes_sched.errors import InputError
from bayes_sched.format import records
from bayes_sched.trace.findings import Finding, Limits, find_all
from bayes_sched.trace.reader import BadLines, Source, Trace
from bayes_sched.trace.time_series import Clock, Kind, over_time, timeline

ANALYSIS_VERSION = 1
"""Raised when a field of :meth:`TraceAnalysis.to_dict` changes its meaning or goes."""

REGIMES = DECODE_ONLY, MIXED, PREFILL_ONLY = "decode only", "mixed", "prefill only"
"""Kinds of steps."""
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
ASKED_FOR = (
    *("timestamp", "schedule_ms", "prefill_tokens", "num_waiting_reqs", "num_running_reqs"),
    *("kv_cache_usage", "context_tokens"),
)
"""Columns that an analysis asks for and a trace may lack."""

_PLAIN = (
    *("name", "labels", "warnings", "num_steps", "num_idle", "clock", "start", "missing"),
    *("is_step_summed", "throughput", "limits", "sources"),
)
_SLOWEST = (
    *("source", "line", "moment", "regime", "step_ms", "schedule_ms", "latency_ms", "times_typical"),
    *("num_prefill_reqs", "num_decode_reqs", "total_tokens", "num_waiting_reqs", "kv_cache_usage"),
)
_SLOW_SCHEDULES = (
    *("source", "line", "timestamp", "time_s", "schedule_ms", "latency_ms", "num_prefill_reqs"),
    *("num_decode_reqs", "total_tokens", "num_waiting_reqs"),
)


@dataclass(frozen=True, eq=False, kw_only=True)
class TraceAnalysis:
    """What a trace says.

    Attributes
    ----------
    name : str
        Default name of a result.
    labels : Mapping of str to str
        ``gpu`` and ``llm`` where a side-car tells them.
    sources : tuple of Source
        The files.
    bad_lines : BadLines
        The lines that could not be used.
    warnings : tuple of str
        What a person should know before trusting the trace.
    limits : Limits
        From where on something is a finding.
    num_steps, num_idle : int
        Batches; and steps without a scheduled token, which no number below counts.
    clock : str
        ``unix``, ``log`` (a date without a year), ``monotonic`` or ``none``.
    start : str
        Moment of the first step; empty where the clock tells no date.
    unix_start_s : float
        The same as Unix time, s; NaN where the clock is another.
    missing : tuple of str
        Those of :data:`ASKED_FOR` that the trace does not hold.
    is_step_summed : bool
        The trace holds no step time: it is the sum of schedule and model run.
    table : DataFrame
        One row a quantity that the trace holds: ``quantity`` (the column), ``title``, ``unit``, ``steps``
        (that hold it), ``mean``, ``min``, ``p50``, ``p95``, ``p99``, ``max``.
    regimes : DataFrame
        One row a kind of steps, those without a step included: ``regime``, ``steps``, ``share`` (of the
        steps), ``time_share`` (of the model-run time), ``tokens`` (sum), ``mean_ms``, ``p50_ms``, ``p95_ms``,
        ``p99_ms`` (of the model run; NaN without steps).
    throughput : Mapping of str to float or None
        None where the trace does not tell: ``tokens``, ``prefill_tokens`` and ``decode_tokens`` (sums);
        ``elapsed_s``; ``tokens_per_s``, ``decode_tokens_per_s``, ``steps_per_s`` (over the elapsed time);
        ``model_run_s`` (sum); ``tokens_per_model_run_s``; ``schedule_share`` (of the step time, sums).
    slowest : DataFrame
        The slowest steps first, by step time where the trace holds it, else by model run: ``source``,
        ``line``, ``moment``, what was in them, how long they took, and ``times_typical``: model run over the
        median of the steps of the same kind with about as many requests and tokens (powers of two). A large
        one is a hiccup, one near 1 only a large batch.
    slow_schedules : DataFrame
        Every step whose scheduling took longer than the limit: its place, time and content.
    findings : tuple of Finding
        What an operator should look at; empty if nothing stands out.
    over_time : DataFrame
        Columns of :func:`bayes_sched.trace.time_series.over_time`.
    steps : DataFrame
        Every step that is not idle, with ``time_s`` (s since the beginning of the trace), ``regime``,
        ``prefill_share``, and where the columns allow ``mean_prefill_chunk`` and ``step_ms``.
    """

    name: str
    labels: Mapping[str, str]
    sources: tuple[Source, ...]
    bad_lines: BadLines
    warnings: tuple[str, ...]
    limits: Limits
    num_steps: int
    num_idle: int
    clock: Kind
    start: str
    unix_start_s: float
    missing: tuple[str, ...]
    is_step_summed: bool
    table: pd.DataFrame
    regimes: pd.DataFrame
    throughput: Mapping[str, float | None]
    slowest: pd.DataFrame
    slow_schedules: pd.DataFrame
    findings: tuple[Finding, ...]
    over_time: pd.DataFrame
    steps: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values, ready for JSON; a missing number is None.

        Keys: ``analysis_version``; ``name``, ``labels``, ``warnings``, ``num_steps``, ``num_idle``,
        ``clock``, ``start``, ``missing``, ``is_step_summed``, ``throughput`` and ``limits`` as above;
        ``sources`` (``path``, ``format``, ``sha256``, ``num_lines``, ``num_steps``); ``bad_lines`` (counts by
        reason); ``statistics``, ``regimes``, ``slowest``, ``findings``, ``over_time``: lists with one mapping
        a row.
        """
        return {
            "analysis_version": ANALYSIS_VERSION,
            **to_builtins({name: getattr(self, name) for name in _PLAIN}),
            "bad_lines": dict(self.bad_lines.counts),
            "statistics": records(self.table),
            "regimes": records(self.regimes),
            "slowest": records(self.slowest),
            "findings": to_builtins(self.findings),
            "over_time": records(self.over_time),
        }


def analyze(trace: Trace, *, limits: Limits | None = None) -> TraceAnalysis:
    """Sum up a trace and look for what an operator should know.

    Nothing is cleaned away but idle steps: what takes long is what one looks for.

    Parameters
    ----------
    trace : Trace
        As :func:`bayes_sched.read_trace` gives it.
    limits : Limits, optional
        From where on something is a finding.

    Returns
    -------
    TraceAnalysis

    Raises
    ------
    InputError
        If every step is idle.
    """
    limits = limits or Limits()
    steps = _prepared(trace.steps)
    if steps.empty:
        raise InputError(
            f"every step of {trace.name} is idle ({len(trace.steps):,} read): no batch was ever scheduled"
        )
    line = timeline(steps, [source.format for source in trace.sources])
    steps["time_s"] = line.time_s
    return TraceAnalysis(
        name=trace.name,
        labels=trace.labels,
        sources=trace.sources,
        bad_lines=trace.bad_lines,
        warnings=trace.warnings,
        limits=limits,
        num_steps=len(steps),
        num_idle=len(trace.steps) - len(steps),
        clock=line.kind,
        start=line.start,
        unix_start_s=line.unix_start_s,
        missing=tuple(name for name in ASKED_FOR if name not in trace.steps),
        is_step_summed="schedule_ms" in trace.steps and "step_ms" not in trace.steps,
        table=_summary_table(steps),
        regimes=_regime_table(steps),
        throughput=_throughput(steps, line.elapsed_s),
        slowest=_slowest(steps, limits.num_slowest, line.clocks),
        slow_schedules=_slow_schedules(steps, limits.slow_schedule_ms),
        findings=find_all(steps, line.clocks, limits),
        over_time=over_time(steps),
        steps=steps,
    )


def _prepared(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the steps that are not idle, rows counted from 0, with what follows from their columns.

    Where nothing is prefilled, ``mean_prefill_chunk`` and ``max_prefill_chunk`` are NaN. ``step_ms`` is as
    recorded, else schedule plus model run, which it is as long as scheduling is synchronous.
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
        both_ms = kept["schedule_ms"].astype(float) + kept["latency_ms"].astype(float)
        kept["step_ms"] = kept["step_ms"].astype(float).fillna(both_ms) if "step_ms" in kept else both_ms
    return kept


def _summary_table(steps: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for name, (title, unit) in QUANTITIES.items():
        values = steps[name].dropna().to_numpy(float) if name in steps else np.empty(0)
        if len(values):
            rows.append((name, title, unit, len(values), *_sums(values)))
    return pd.DataFrame(
        rows, columns=["quantity", "title", "unit", "steps", "mean", "min", *QUANTILES, "max"]
    )


def _sums(values: Floats) -> tuple[float, ...]:
    quantiles = np.quantile(values, list(QUANTILES.values()))
    return (float(values.mean()), float(values.min()), *map(float, quantiles), float(values.max()))


def _regime_table(steps: pd.DataFrame) -> pd.DataFrame:
    total_ms = float(steps["latency_ms"].sum())
    rows = []
    for regime in REGIMES:
        chosen = steps[steps["regime"] == regime]
        values = chosen["latency_ms"].to_numpy(float)
        mean_ms, _, p50_ms, p95_ms, p99_ms, _ = _sums(values) if len(values) else (math.nan,) * 6
        time_share = float(values.sum()) / total_ms if total_ms else math.nan
        tokens = int(chosen["total_tokens"].sum())
        share = len(chosen) / len(steps)
        rows.append((regime, len(chosen), share, time_share, tokens, mean_ms, p50_ms, p95_ms, p99_ms))
    columns = ["regime", "steps", "share", "time_share", "tokens", "mean_ms", "p50_ms", "p95_ms", "p99_ms"]
    return pd.DataFrame(rows, columns=columns)


def _throughput(steps: pd.DataFrame, elapsed_s: float) -> dict[str, float | None]:
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


def _slowest(steps: pd.DataFrame, num: int, clocks: tuple[Clock, ...]) -> pd.DataFrame:
    kind = [steps["regime"].cat.codes, *(np.floor(np.log2(steps[n])) for n in ("batch_size", "total_tokens"))]
    typical_ms = steps["latency_ms"].groupby(kind).transform("median")
    rows = steps["step_ms" if "step_ms" in steps else "latency_ms"].nlargest(num).index
    with np.errstate(divide="ignore", invalid="ignore"):
        times_typical = steps.loc[rows, "latency_ms"] / typical_ms[rows]
    slowest = steps.loc[rows].assign(times_typical=times_typical).reset_index(drop=True)
    stamps = slowest["timestamp"] if "timestamp" in slowest else [math.nan] * len(slowest)
    pairs = zip(slowest["source"].cat.codes, stamps, strict=True)
    slowest["moment"] = [clocks[code].moment(float(stamp)) for code, stamp in pairs]
    return slowest[[name for name in _SLOWEST if name in slowest]]


def _slow_schedules(steps: pd.DataFrame, limit_ms: float) -> pd.DataFrame:
    chosen = steps[steps["schedule_ms"] > limit_ms] if "schedule_ms" in steps else steps.iloc[:0]
    return chosen[[name for name in _SLOW_SCHEDULES if name in steps]]
