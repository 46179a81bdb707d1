"""A trace in, a `TraceAnalysis` out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from bayes_sched.errors import InputError
from bayes_sched.format import records
from bayes_sched.trace.findings import Finding, Limits, find_all
from bayes_sched.trace.reader import BadLines, Source, Trace
from bayes_sched.trace.statistics import (
    missing_columns,
    prepared,
    regime_table,
    slowest_steps,
    summary_table,
    throughput,
)
from bayes_sched.trace.time_series import Kind, over_time, timeline
from bayes_sched.trace.words import paragraph

ANALYSIS_VERSION = 1
"""Raised when a field of :meth:`TraceAnalysis.to_dict` changes its meaning or goes."""

_SLOWEST = (
    *("source", "line", "moment", "regime", "step_ms", "schedule_ms", "latency_ms", "times_typical"),
    *("num_prefill_reqs", "num_decode_reqs", "total_tokens", "num_waiting_reqs", "kv_cache_usage"),
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
        Columns that the trace does not hold, of those that an analysis asks for.
    is_step_summed : bool
        The trace holds no step time: it is the sum of schedule and model run.
    table : DataFrame
        The statistics; columns of `bayes_sched.analysis.statistics.summary_table`.
    regimes : DataFrame
        Kinds of steps; columns of `bayes_sched.analysis.statistics.regime_table`.
    throughput : Mapping of str to float or None
        As `bayes_sched.analysis.statistics.throughput` gives it.
    slowest : DataFrame
        The slowest steps: ``source``, ``line``, ``moment``, what was in them and how long they took.
    findings : tuple of Finding
        What an operator should look at; empty if nothing stands out.
    over_time : DataFrame
        Columns of `bayes_sched.analysis.over_time.over_time`.
    steps : DataFrame
        Every step that is not idle, as `bayes_sched.analysis.statistics.prepared` gives them, with
        ``time_s`` (s since the beginning of the trace).
    sentences : tuple of str
        The plain-language paragraph.
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
    findings: tuple[Finding, ...]
    over_time: pd.DataFrame
    steps: pd.DataFrame
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        """The paragraph, and one line for each warning after it."""
        return "\n".join([" ".join(self.sentences), *(f"Warning: {text}" for text in self.warnings)])

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values, ready for JSON; a missing number is None.

        Keys: ``analysis_version``; ``name``, ``labels``, ``text``, ``warnings``, ``num_steps``, ``num_idle``,
        ``clock``, ``start``, ``missing``, ``is_step_summed``, ``throughput`` and ``limits`` as above;
        ``sources`` (``path``, ``format``, ``sha256``, ``num_lines``, ``num_steps``); ``bad_lines`` (counts by
        reason); ``statistics``, ``regimes``, ``slowest``, ``findings``, ``over_time``: lists with one mapping
        a row.
        """
        return {
            "analysis_version": ANALYSIS_VERSION,
            "name": self.name,
            "labels": dict(self.labels),
            "text": " ".join(self.sentences),
            "warnings": list(self.warnings),
            "num_steps": self.num_steps,
            "num_idle": self.num_idle,
            "clock": self.clock,
            "start": self.start,
            "missing": list(self.missing),
            "is_step_summed": self.is_step_summed,
            "throughput": dict(self.throughput),
            "limits": asdict(self.limits),
            "sources": [asdict(source) for source in self.sources],
            "bad_lines": dict(self.bad_lines.counts),
            "statistics": records(self.table),
            "regimes": records(self.regimes),
            "slowest": records(self.slowest),
            "findings": [finding.to_dict() for finding in self.findings],
            "over_time": records(self.over_time),
        }


def analyze(trace: Trace, *, limits: Limits | None = None) -> TraceAnalysis:
    """Sum up a trace and look for what an operator should know.

    Nothing is cleaned away but idle steps: what takes long is what one looks for.

    Parameters
    ----------
    trace : Trace
        As `bayes_sched.trace.read_trace` gives it.
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
    steps = prepared(trace.steps)
    if steps.empty:
        raise InputError(
            f"every step of {trace.name} is idle ({len(trace.steps):,} read): no batch was ever scheduled"
        )
    line = timeline(steps, [source.format for source in trace.sources])
    steps["time_s"] = line.time_s
    table, regimes = summary_table(steps), regime_table(steps)
    totals = throughput(steps, line.elapsed_s)
    findings = find_all(steps, line.clocks, limits)
    missing = missing_columns(trace.steps)
    slowest = slowest_steps(steps, limits.num_slowest)
    stamps = slowest["timestamp"] if "timestamp" in slowest else [float("nan")] * len(slowest)
    codes = slowest["source"].cat.codes
    slowest["moment"] = [
        line.clocks[code].moment(float(stamp)) for code, stamp in zip(codes, stamps, strict=True)
    ]
    num_idle = len(trace.steps) - len(steps)
    return TraceAnalysis(
        name=trace.name,
        labels=trace.labels,
        sources=trace.sources,
        bad_lines=trace.bad_lines,
        warnings=trace.warnings,
        limits=limits,
        num_steps=len(steps),
        num_idle=num_idle,
        clock=line.kind,
        start=line.start,
        unix_start_s=line.unix_start_s,
        missing=missing,
        is_step_summed="schedule_ms" in trace.steps and "step_ms" not in trace.steps,
        table=table,
        regimes=regimes,
        throughput=totals,
        slowest=slowest[[name for name in _SLOWEST if name in slowest]],
        findings=findings,
        over_time=over_time(steps),
        steps=steps,
        sentences=paragraph(
            table=table,
            regimes=regimes,
            totals=totals,
            findings=findings,
            limits=limits,
            missing=missing,
            labels=trace.labels,
            start=line.start,
            num_idle=num_idle,
        ),
    )
