"""What a trace says without any model: statistics, kinds of steps, throughput, slowest steps, findings.

All steps are put on one axis of time, whatever clock wrote them:

===============  ==================================================================================
``unix``         seconds, or thousandths, millionths, billionths of them, since 1970
``log``          the dates of a vLLM log, which lack the year
``monotonic``    a clock of its own beginning; also where files of one trace have different clocks
``none``         no timestamps
===============  ==================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
import pandas as pd
from msgspec import to_builtins
from numpy.typing import NDArray

from bayes_sched.arrays import Floats
from bayes_sched.errors import InputError
from bayes_sched.format import records
from bayes_sched.trace.findings import Finding, Limits, find_all
from bayes_sched.trace.formats import VLLM_LOG, YEAR_2001_S, YEAR_2100_S
from bayes_sched.trace.reader import BadLines, Source, Trace

type Kind = Literal["unix", "log", "monotonic", "none"]
ANALYSIS_VERSION = 1
"""Raised when a field of :meth:`TraceAnalysis.to_dict` changes its meaning or goes."""

REGIMES = DECODE_ONLY, MIXED, PREFILL_ONLY = "decode only", "mixed", "prefill only"
"""Kinds of steps."""
_UNITS = (1.0, 1e3, 1e6, 1e9)
_FELL_BACK_S = 1.0
"""A clock that goes back by more began anew, with another start of the server say."""
MAX_BINS = 120
_STEPS_A_BIN = 30
_TIMES = ("schedule_ms", "latency_ms")
LEVELS = ("num_waiting_reqs", "num_running_reqs", "kv_cache_usage")
"""Columns of a state, which last until the next step."""
_BIN_QUANTILES = {"p5": 0.05, "p50": 0.5, "p95": 0.95}
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
    """What a trace says."""

    name: str
    labels: Mapping[str, str]
    sources: tuple[Source, ...]
    bad_lines: BadLines
    warnings: tuple[str, ...]
    """These five are those of the :class:`~bayes_sched.trace.reader.Trace`."""
    limits: Limits
    """From where on something is a finding."""
    num_steps: int
    num_idle: int
    """Batches; and steps without a scheduled token, which no number below counts."""
    clock: Kind
    """``unix``, ``log`` (a date without a year), ``monotonic`` or ``none``."""
    start: str
    """Moment of the first step; empty where the clock tells no date."""
    unix_start_s: float
    """The same as Unix time, s; NaN where the clock is another."""
    missing: tuple[str, ...]
    """Those of :data:`ASKED_FOR` that the trace does not hold."""
    is_step_summed: bool
    """The trace holds no step time: it is the sum of schedule and model run."""
    table: pd.DataFrame
    """One row a quantity that the trace holds: ``quantity`` (the column), ``title``, ``unit``, ``steps``
    (that hold it), ``mean``, ``min``, ``p50``, ``p95``, ``p99``, ``max``."""
    regimes: pd.DataFrame
    """One row a kind of steps, those without a step included: ``regime``, ``steps``, ``share`` (of the
    steps), ``time_share`` (of the model-run time), ``tokens`` (sum), ``mean_ms``, ``p50_ms``, ``p95_ms``,
    ``p99_ms`` (of the model run; NaN without steps)."""
    throughput: Mapping[str, float | None]
    """None where the trace does not tell: ``tokens``, ``prefill_tokens`` and ``decode_tokens`` (sums);
    ``elapsed_s``; ``tokens_per_s``, ``decode_tokens_per_s``, ``steps_per_s`` (over the elapsed time);
    ``model_run_s`` (sum); ``tokens_per_model_run_s``; ``schedule_share`` (of the step time, sums)."""
    slowest: pd.DataFrame
    """The slowest steps first, by step time where the trace holds it, else by model run: ``source``,
    ``line``, ``moment``, what was in them, how long they took, and ``times_typical``: model run over the
    median of the steps of the same kind with about as many requests and tokens (powers of two). A large one
    is a hiccup, one near 1 only a large batch."""
    slow_schedules: pd.DataFrame
    """Every step whose scheduling took longer than the limit: its place, time and content."""
    findings: tuple[Finding, ...]
    """What an operator should look at; empty if nothing stands out."""
    over_time: pd.DataFrame
    """Equal pieces of time, or of the number of steps where the trace tells no time: one row a piece that
    holds steps, ``from`` and ``to`` (s since the beginning of the trace, or numbers of steps), ``steps``,
    ``tokens``, ``prefill_tokens`` (sums); of ``schedule_ms`` and ``latency_ms`` ``NAME_p5``, ``NAME_p50``,
    ``NAME_p95``, ``NAME_max``, and the medians of steps that only decode, ``NAME_decode``, and of those that
    prefill, ``NAME_prefill``; of requests that wait and run and the KV-cache use ``NAME_mean``,
    ``NAME_max``."""
    steps: pd.DataFrame
    """Every step that is not idle, with ``time_s`` (s since the beginning of the trace), ``regime``,
    ``prefill_share``, and where the columns allow ``mean_prefill_chunk`` and ``step_ms``."""

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
        findings=find_all(steps, [clock.moment for clock in line.clocks], limits),
        over_time=over_time(steps),
        steps=steps,
    )


def _prepared(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the steps that are not idle, with what follows from their columns."""
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
        # What a step takes as long as scheduling is synchronous.
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
    both = steps[["schedule_ms", "step_ms"]].dropna() if "schedule_ms" in steps else None
    schedule, step = (0.0, 0.0) if both is None else (float(both[n].sum()) for n in both)
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
        "schedule_share": _ratio(schedule, step),
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


@dataclass(frozen=True, slots=True)
class Clock:
    """The clock of one file."""

    kind: Kind
    per_second: float  # units of the timestamps in a second
    first: float  # timestamp of the file, in its own units; NaN without any

    def moment(self, timestamp: float) -> str:
        """Write a timestamp of the file as a person reads it; empty where there is none."""
        if self.kind == "none" or not np.isfinite(timestamp):
            return ""
        seconds = timestamp / self.per_second
        if self.kind == "unix":
            return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC"
        if self.kind == "log":
            return f"{datetime(2000, 1, 1) + timedelta(seconds=seconds):%m-%d %H:%M:%S}"
        return f"{(timestamp - self.first) / self.per_second:,.3f} s"


@dataclass(frozen=True, eq=False, slots=True)
class Timeline:
    """All steps of a trace on one axis."""

    clocks: tuple[Clock, ...]  # of the files, in their order
    kind: Kind  # that all clocks share; monotonic where they differ; none if any file has none
    time_s: Floats  # since the beginning of the trace, dims (step,); NaN without a timestamp
    elapsed_s: float  # while some file was being written; NaN without timestamps
    start: str  # the first moment; empty where the axis has no date
    unix_start_s: float  # the same, s; NaN where the axis is not Unix time


def timeline(steps: pd.DataFrame, formats: list[str]) -> Timeline:
    """Put the steps of a trace on one axis; the formats are those of the files, in their order.

    Unix time, and the clock of a log, order all files on their own. Files of monotonic clocks share the axis
    where they overlap, as those of the ranks of one server do; otherwise one follows the other without a gap.
    """
    codes = steps["source"].cat.codes.to_numpy()
    stamps = steps["timestamp"].to_numpy(float) if "timestamp" in steps else np.full(len(steps), np.nan)
    files = [np.flatnonzero(codes == code) for code in range(len(formats))]
    clocks = tuple(_clock(stamps[rows], name) for rows, name in zip(files, formats, strict=True))
    used = {clock.kind for clock, rows in zip(clocks, files, strict=True) if len(rows)}
    time_s = np.full(len(steps), np.nan)
    if not used or "none" in used:
        return Timeline(clocks, "none", time_s, np.nan, "", np.nan)
    seconds = stamps / np.array([clock.per_second for clock in clocks])[codes]
    groups = _overlapping([span for rows in files for span in _spans(rows, seconds)])
    spans_s = [(min(s.first for s in group), max(s.last for s in group)) for group in groups]
    elapsed_s = sum(last - first for first, last in spans_s)
    kind: Kind = used.pop() if len(used) == 1 else "monotonic"
    if kind == "monotonic":
        end = 0.0
        for group, (first, last) in zip(groups, spans_s, strict=True):
            for span in group:
                time_s[span.rows] = seconds[span.rows] - first + end
            end += last - first
        return Timeline(clocks, kind, time_s, elapsed_s, "", np.nan)
    origin = float(np.nanmin(seconds))
    start = Clock(kind, 1.0, origin).moment(origin)
    return Timeline(clocks, kind, seconds - origin, elapsed_s, start, origin if kind == "unix" else np.nan)


def _clock(stamps: Floats, format_name: str) -> Clock:
    known = stamps[np.isfinite(stamps)]
    if not len(known):
        return Clock("none", 1.0, np.nan)
    first, middle = float(known[0]), float(np.median(known))
    if VLLM_LOG in format_name.split("+"):
        return Clock("log" if format_name == VLLM_LOG else "monotonic", 1.0, first)
    for unit in _UNITS:
        if YEAR_2001_S <= middle / unit <= YEAR_2100_S:
            return Clock("unix", unit, first)
    return Clock("monotonic", 1.0, first)


@dataclass(frozen=True, eq=False, slots=True)
class _Span:
    """Steps of one file between two restarts of its clock."""

    rows: NDArray[np.intp]
    first: float
    last: float


def _spans(rows: NDArray[np.intp], seconds: Floats) -> list[_Span]:
    rows = rows[np.isfinite(seconds[rows])]
    if not len(rows):
        return []
    restarts = np.flatnonzero(np.diff(seconds[rows]) < -_FELL_BACK_S) + 1
    pieces = np.split(rows, restarts)
    return [_Span(piece, float(seconds[piece].min()), float(seconds[piece].max())) for piece in pieces]


def _overlapping(spans: list[_Span]) -> list[list[_Span]]:
    """Group spans that overlap; the groups stand in the order in which their first file was given."""
    groups: list[list[_Span]] = []
    for span in spans:
        near = [group for group in groups if any(span.first < o.last and o.first < span.last for o in group)]
        groups = [group for group in groups if group not in near]
        groups.append([*(member for group in near for member in group), span])
    return groups


def over_time(steps: pd.DataFrame) -> pd.DataFrame:
    """Sum up the steps piece by piece."""
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
        for short, q in _BIN_QUANTILES.items():
            columns[f"{name}_{short}"] = groups[name].quantile(q)
        columns[f"{name}_max"] = groups[name].max()
        for kind, chosen in kinds.items():
            columns[f"{name}_{kind}"] = steps.loc[chosen, name].groupby(codes[chosen]).median()
    for name in filter(steps.__contains__, LEVELS):
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
