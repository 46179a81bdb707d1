"""The plain-language paragraph on top of an analysis: what was measured, what to do about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from bayes_sched.format import listed, number, percent, records
from bayes_sched.trace.findings import (
    KV_CACHE_FULL,
    NEEDS,
    QUEUE_BUILD_UP,
    SCHEDULE_RISE,
    SLOW_SCHEDULING,
    Finding,
    Limits,
)
from bayes_sched.trace.statistics import DECODE_ONLY, MISSING_WORDS, MIXED, PREFILL_ONLY

SMALL_SHARE, LARGE_SHARE = 0.05, 0.15
"""Scheduling that takes less of a step is no matter; more is a bottleneck."""
_RARE = 0.001
_BURST_S = 10.0
_LONG_MIXED = 2.0
"""Mixed steps that take so many times as long as decode-only ones are felt by whoever waits for a token."""


def paragraph(
    *,
    table: pd.DataFrame,
    regimes: pd.DataFrame,
    totals: Mapping[str, float | None],
    findings: tuple[Finding, ...],
    limits: Limits,
    missing: tuple[str, ...],
    labels: Mapping[str, str],
    start: str,
    num_idle: int,
) -> tuple[str, ...]:
    """Return the sentences that a busy operator can act on.

    Parameters
    ----------
    table, regimes : DataFrame
        Of `bayes_sched.analysis.statistics`.
    totals : Mapping of str to float or None
        As `bayes_sched.analysis.statistics.throughput` gives them.
    findings : tuple of Finding
    limits : Limits
    missing : tuple of str
        Columns that the trace does not hold.
    labels : Mapping of str to str
    start : str
        Moment of the first step; may be empty.
    num_idle : int
        Steps left out.

    Returns
    -------
    tuple of str
    """
    rows = {row["quantity"]: row for row in records(table)}
    sentences = (
        _measured(rows, totals, labels, start, num_idle),
        _step(rows),
        _regimes(regimes),
        _scheduling(totals),
        *_found(findings, limits, rows),
        _quiet(findings, limits, missing),
        _missing(missing),
    )
    return tuple(filter(None, sentences))


def duration(seconds: float) -> str:
    """Write a time span as a person reads it: ``4 min 44 s``, ``2 h 5 min``."""
    if seconds < 120:
        return f"{number(seconds)} s"
    hours, minutes = divmod(round(seconds) // 60, 60)
    if not hours:
        return f"{minutes} min {round(seconds) % 60} s"
    return f"{hours:,} h {minutes} min"


def _measured(
    rows: Mapping[str, Any],
    totals: Mapping[str, float | None],
    labels: Mapping[str, str],
    start: str,
    num_idle: int,
) -> str:
    what = f"{rows['batch_size']['steps']:,} batches"
    if llm := labels.get("llm"):
        what += f" of {llm}"
    if gpu := labels.get("gpu"):
        what += f" on {gpu}"
    if (elapsed_s := totals["elapsed_s"]) and totals["tokens_per_s"] is not None:
        what += f" in {duration(elapsed_s)}" + (f" from {start}" if start else "")
        what += (
            f": {number(totals['steps_per_s'])} steps and {number(totals['tokens_per_s'])} tokens a second"
        )
        if totals["decode_tokens_per_s"] is not None:
            what += f" ({number(totals['decode_tokens_per_s'])} of them decoded)"
    elif totals["tokens_per_model_run_s"] is not None:
        steps_per_s, tokens_per_s = number(totals["steps_per_s"]), number(totals["tokens_per_s"])
        what += f": {steps_per_s} steps and {tokens_per_s} tokens a second"
        if totals["decode_tokens_per_s"] is not None:
            what += f" ({number(totals['decode_tokens_per_s'])} of them decoded)"
    elif totals["tokens_per_model_run_s"] is not None:
        what += f": {number(totals['tokens_per_model_run_s'])} tokens for each second of model run"
    idle = f"; {num_idle:,} idle step{_s(num_idle)} left out" if num_idle else ""
    return f"Measured: {what}{idle}."


def _step(rows: Mapping[str, Any]) -> str:
    row = rows["latency_ms"]
    return (
        f"The model runs for {number(row['p50'])} ms at the median, 1 batch in 100 for more than "
        f"{number(row['p99'])} ms, the longest for {number(row['max'])} ms."
    )


def _regimes(regimes: pd.DataFrame) -> str:
    rows = {row["regime"]: row for row in records(regimes) if row["steps"]}
    parts = []
    names = {DECODE_ONLY: "only decode", MIXED: "mix prefill and decode", PREFILL_ONLY: "only prefill"}
    for regime, row in rows.items():
        if row["share"] < _RARE and len(rows) > 1:
            continue
        share = percent(row["share"], 1)
        parts.append(f"{share} of the batches {names[regime]} (median {number(row['p50_ms'])} ms)")
    text = f"{listed(parts)}."
    if DECODE_ONLY in rows and MIXED in rows and rows[DECODE_ONLY]["p50_ms"]:
        times = rows[MIXED]["p50_ms"] / rows[DECODE_ONLY]["p50_ms"]
        if times >= _LONG_MIXED:
            text += (
                f" A mixed batch makes those that decode wait {number(times, 2)} times as long for a token: "
                "if that is felt, lower the token budget (--max-num-batched-tokens)."
            )
    return text


def _scheduling(totals: Mapping[str, float | None]) -> str:
    share = totals["schedule_share"]
    if share is None:
        return ""
    verdict = "no bottleneck"
    if share >= LARGE_SHARE:
        verdict = "a bottleneck: give the engine's process a faster or less busy CPU core"
    elif share >= SMALL_SHARE:
        verdict = "worth watching"
    return f"Scheduling takes {percent(share, 1)} of the step time: {verdict}."


def _found(findings: tuple[Finding, ...], limits: Limits, rows: Mapping[str, Any]) -> list[str]:
    of_kind = {kind: [f for f in findings if f.kind == kind] for kind in NEEDS}
    sentences = []
    if found := of_kind[SLOW_SCHEDULING]:
        num = sum(f.num_steps for f in found)
        sentences.append(
            f"{num:,} step{_s(num)} ({percent(num / rows['schedule_ms']['steps'], 2)}) scheduled for more "
            f"than {limits.slow_schedule_ms:g} ms, {_worst(found)}: such a pause is seldom the scheduler's "
            "own; look for garbage collection and for other load on its CPU at these moments."
        )
    if found := of_kind[SCHEDULE_RISE]:
        sentences.append(
            f"The schedule time rose suddenly {_times(found)}, {_worst(found)}, by more than the load "
            "explains: look for what else changed on that host then."
        )
    if found := of_kind[QUEUE_BUILD_UP]:
        sentences.append(
            f"A queue of more than {limits.long_queue:,} requests built up {_times(found)}, "
            f"{_worst(found)}: {_overload(found)}."
        )
    if found := of_kind[KV_CACHE_FULL]:
        sentences.append(
            f"The KV cache was at least {percent(limits.full_kv_cache)} full {_times(found)}, "
            f"{_worst(found)}: requests get preempted and computed again; lower --max-num-seqs, or give the "
            "cache more memory (--gpu-memory-utilization)."
        )
    return sentences


def _overload(found: list[Finding]) -> str:
    """Tell bursts from lasting overload, by the longest queue."""
    longest_s = max((finding.duration_s or math.inf) for finding in found)
    if longest_s < _BURST_S and not any("still waiting" in finding.text for finding in found):
        return f"bursts, of which the longest drained within {duration(longest_s)}"
    return "the server was offered more than it serves; add a replica, or admit less"


def _times(found: list[Finding]) -> str:
    return "once" if len(found) == 1 else f"{len(found):,} times"


def _worst(found: list[Finding]) -> str:
    worst = max(found, key=lambda f: f.value)
    value = percent(worst.value, 1) if worst.unit == "share" else f"{worst.value:,.4g} {worst.unit}"
    moment = f", {worst.peak}" if worst.peak else ""
    moment += " into the file" if moment.endswith(" s") else ""
    return f"{'' if len(found) == 1 else 'at worst '}{value} at {worst.source}:{worst.peak_line}{moment}"


def _quiet(findings: tuple[Finding, ...], limits: Limits, missing: tuple[str, ...]) -> str:
    """Say what was looked for and not found."""
    names = {
        SLOW_SCHEDULING: f"step that scheduled for more than {limits.slow_schedule_ms:g} ms",
        SCHEDULE_RISE: "sudden rise of the schedule time",
        QUEUE_BUILD_UP: f"lasting queue of more than {limits.long_queue:,} requests",
        KV_CACHE_FULL: f"time with the KV cache {percent(limits.full_kv_cache)} full",
    }
    kinds = {finding.kind for finding in findings}
    absent = [f"no {name}" for kind, name in names.items() if kind not in kinds | _unseen(missing)]
    return f"There is {listed(absent)}." if absent else ""


def _unseen(missing: tuple[str, ...]) -> set[str]:
    """Kinds that the trace cannot show."""
    return {kind for kind, columns in NEEDS.items() if set(columns) & set(missing)}


def _missing(missing: tuple[str, ...]) -> str:
    if not missing:
        return ""
    words = listed([MISSING_WORDS[name] for name in missing])
    unseen = [kind for kind in NEEDS if kind in _unseen(missing)]
    consequence = f", so it cannot show {listed(unseen)}" if unseen else ""
    return f"The trace does not hold {words}{consequence}."


def _s(num: int) -> str:
    return "" if num == 1 else "s"
