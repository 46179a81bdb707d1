"""What a trace shows, as a document: what an operator can act on, the numbers behind it, figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import pandas as pd

from bayes_sched.files import ANALYSIS
from bayes_sched.format import (
    NONE,
    count,
    counted,
    cut_start,
    listed,
    number,
    percent,
    quantity,
    records,
    sentence,
)
from bayes_sched.reports import document as doc
from bayes_sched.trace.analysis import DECODE_ONLY, LEVELS, MIXED, PREFILL_ONLY, TraceAnalysis
from bayes_sched.trace.findings import (
    KV_CACHE_FULL,
    NEEDS,
    QUEUE_BUILD_UP,
    SCHEDULE_RISE,
    SLOW_SCHEDULING,
    STILL_WAITING,
    Finding,
)
from bayes_sched.trace.reader import BadLines

MAX_SHOWN = 50
"""A page lists this many findings of a kind, the worst ones; the file holds all."""
SMALL_SHARE, LARGE_SHARE = 0.05, 0.15
"""Scheduling that takes less of a step is no matter; more is a bottleneck."""
_RARE = 0.001
_BURST_S = 10.0
_LONG_MIXED = 2.0
"""Mixed steps that take so many times as long as decode-only ones are felt by whoever waits for a token."""

_MISSING = {
    "timestamp": "timestamps",
    "schedule_ms": "the schedule time",
    "prefill_tokens": "chunk sizes",
    "num_waiting_reqs": "the waiting queue",
    "num_running_reqs": "the running requests",
    "kv_cache_usage": "KV-cache use",
    "context_tokens": "context lengths",
}

_SLOWEST = (
    "By {} time. The column before the requests compares the model run with the median of like batches: "
    "where it is near 1, the batch is only large."
)
_SUMMED = (
    "The trace holds no step time: it is the sum of schedule and model run, as under synchronous scheduling."
)
_LIMITS = (
    "Limits of the findings: scheduling above {:g} ms, a rise of the schedule time of like batches by {:g} "
    "times, more than {} waiting requests and a KV cache at least {:g}% full, each for 20 batches or for a "
    "second."
)
_STACKED = (
    "Batches by the time {}, the kinds of batches on top of each other. Dotted lines: half, 95% and 99% of "
    "all batches take no longer."
)
_FIGURES = {
    "times_over_time": (
        "Time of batches over time",
        "The lines are medians, of the batches that only decode and of those that prefill; the band holds "
        "90% of all batches of each piece of time, the dots are its slowest batch; logarithmic axes. A "
        "dashed vertical line is a sudden rise of the schedule time that the load does not explain.",
    ),
    "tokens_over_time": (
        "Tokens over time",
        "What the server processed, prefilled tokens on top of decoded ones. A flat top is a server at its "
        "limit, provided that requests were waiting.",
    ),
    "queue_and_cache": (
        "Queue and KV cache over time",
        "Lines are means of each piece of time, the light band above reaches to the maximum. Shaded spans "
        "are findings: a queue that built up, a KV cache near full (red line: the limit).",
    ),
    "request_distributions": (
        "Requests a batch",
        "Each bar is the share of the batches that hold so many requests of the kind; the scale is "
        "logarithmic, so that rare batches show.",
    ),
    "model_run_histogram": (
        "Model-run time",
        _STACKED.format("the model ran"),
    ),
    "schedule_histogram": (
        "Schedule time",
        _STACKED.format("their scheduling took"),
    ),
    "schedule_against_model_run": (
        "Schedule time against model-run time",
        "On the dashed lines scheduling takes 1%, 10% or 100% of the model run. What lies above the red line "
        "took longer to schedule than the limit.",
    ),
}


@doc.report.register
def _(result: TraceAnalysis, *, command: str = "") -> doc.Document:
    lead = " ".join(sentences(result))
    num = len(result.findings)
    found = doc.Text(counted(num, "finding"), "bad", on="page")
    findings = pd.DataFrame(
        [asdict(finding) for finding in result.findings], columns=list(Finding.__dataclass_fields__)
    )
    frames = {
        "statistics": result.table,
        "regimes": result.regimes,
        "slowest": result.slowest,
        "findings": findings,
        "slow_schedules": result.slow_schedules,
        "over_time": result.over_time,
    }
    numbers = result.to_dict()
    first = {name: numbers[name] for name in ("analysis_version", "name", "labels")}
    start = f" from {result.start}" if result.start else ""
    return doc.Document(
        title=f"Scheduler steps of a server: {result.name}",
        name=f"Trace analysis: {result.name}",
        subtitle=doc.made(*doc.labelled(result.labels), f"{result.num_steps:,} batches{start}"),
        head=(found if num else doc.Text("nothing stands out", "good", on="page"),),
        sections=(
            doc.Text(lead, "lead"),
            *doc.beware(result.warnings),
            doc.Section(
                "What to look at", (*_findings(findings, result.limits.num_slowest), *_slowest(result))
            ),
            _numbers(result),
            doc.Section("Figures", _figures(result)),
            doc.how_made(command, *_read(result), files=[ANALYSIS], frames=list(frames)),
        ),
        numbers={**first, "text": lead, **numbers, "command": command},
        json_name=ANALYSIS,
        frames=frames,
    )


def _findings(findings: pd.DataFrame, num_shown: int) -> list[doc.Section]:
    """Return a section for each kind: on a page the `MAX_SHOWN` worst, on a terminal `num_shown`."""
    sections = []
    for kind in findings["kind"].unique():
        found = findings[findings["kind"] == kind]
        worst = found["value"].sort_values(ascending=False, kind="stable").index
        listed_ones, few = (found.loc[worst[:most].sort_values()] for most in (MAX_SHOWN, num_shown))
        listed_text = f"{len(found):,} in the trace"
        if len(listed_ones) < len(found):
            listed_text += f"; the worst {len(listed_ones)} are listed, all of them are in "
            listed_text += "[findings.csv](tables/findings.csv)"
        head = f"{sentence(kind)}: {len(found):,}"
        if len(few) < len(found):
            head += f", the worst {len(few)} (JSON and report hold all)"
        points = [f"{f['start'] or NONE}  {f['source']}:{f['first_line']}: {f['text']}" for f in records(few)]
        columns = (
            doc.Column("start", "moment", lambda start: start or "step"),
            doc.Column(("source", "first_line"), "file and line", _place),
            doc.Column("text", "what"),
        )
        items = (
            doc.Text(f"{listed_text}.", on="page"),
            doc.Table(listed_ones, columns, on="page"),
            doc.Text(f"{head}.", points=tuple(points), on="terminal"),
        )
        sections.append(doc.Section(sentence(kind), items))
    return sections


def _place(source: str, line: int) -> str:
    return f"{source}:{line}"


def _slowest(result: TraceAnalysis) -> tuple[doc.Item, ...]:
    if result.slowest.empty:
        return ()
    columns = [
        doc.Column(("source", "line"), "file and line", _place, short=""),
        doc.Column(("source", "line"), "", lambda *at: cut_start(_place(*at), 30), short="slowest batches"),
        doc.Column("moment", "moment"),
        doc.Column("regime", "kind", short=""),
        doc.Column("schedule_ms", "schedule (ms)", number, short="sched"),
        doc.Column("latency_ms", "model run (ms)", number, short="model ms"),
        doc.Column("times_typical", "times like batches", partial(number, digits=2), short="x like"),
        doc.Column("num_prefill_reqs", "prefill requests", count, short="prefill"),
        doc.Column("num_decode_reqs", "decode requests", count, short="decode"),
        doc.Column("total_tokens", "tokens", count),
    ]
    if "schedule_ms" not in result.slowest:
        columns = [column for column in columns if column.source != "schedule_ms"]
    by = _SLOWEST.format("step" if "step_ms" in result.slowest else "model-run")
    legend = "x like: model run over the median of like batches; prefill, decode: requests"
    table = doc.Table(result.slowest, tuple(columns))
    return (
        doc.Section("Slowest batches", (doc.Text(by, on="page"), table, doc.Text(legend, on="terminal"))),
    )


def _numbers(result: TraceAnalysis) -> doc.Section:
    statistics = (
        doc.Column(("title", "unit"), "quantity", _label, short="of each batch"),
        *(doc.Column((name, "unit"), name, quantity) for name in ("mean", "min", "p50", "p95", "p99", "max")),
        doc.Column("steps", "batches", short=""),
    )
    regimes = (
        doc.Column("regime", "batches", short="kind of batch"),
        doc.Column("steps", "number"),
        doc.Column("share", "share", partial(percent, digits=1)),
        doc.Column("time_share", "share of model-run time", lambda x: percent(x or 0.0, 1), short="of time"),
        doc.Column("tokens", "tokens", short=""),
        *(doc.Column(f"{q}_ms", f"{q} (ms)", number, short=f"{q} ms") for q in ("mean", "p50", "p95", "p99")),
    )
    missing = [_MISSING[name] for name in result.missing]
    return doc.Section(
        "Numbers",
        (
            doc.Table(result.table, statistics),
            *([doc.Text(_SUMMED, "soft")] if result.is_step_summed else []),
            *([doc.Text(f"Missing in the trace: {listed(missing)}.", on="terminal")] if missing else []),
            doc.Section("Kinds of batches", (doc.Table(result.regimes, regimes),)),
        ),
    )


def _label(title: str, unit: str) -> str:
    """Name a quantity with its unit, where the title does not say it already."""
    return title if unit == "share" or unit in title else f"{title} ({unit})"


def _figures(result: TraceAnalysis) -> tuple[doc.Figure, ...]:
    """Return the figures that the columns of the trace allow."""
    left_out = set()
    if "schedule_ms" not in result.steps:
        left_out |= {"schedule_histogram", "schedule_against_model_run"}
    if not set(LEVELS) & set(result.steps):
        left_out.add("queue_and_cache")
    return tuple(
        doc.figure(f"trace.{name}", title, caption, result)
        for name, (title, caption) in _FIGURES.items()
        if name not in left_out
    )


def _read(result: TraceAnalysis) -> tuple[doc.Item, ...]:
    """Say what was read, and from where on something is a finding."""
    limits = result.limits
    sources = (
        doc.Column("path", "file", lambda path: path.rpartition("/")[2]),
        *doc.titled(format="format", num_lines="lines", num_steps="steps", sha256="SHA-256"),
    )
    told = _LIMITS.format(
        limits.slow_schedule_ms, limits.schedule_rise, limits.long_queue, 100 * limits.full_kv_cache
    )
    files = doc.Table(pd.DataFrame([asdict(source) for source in result.sources]), sources, on="page")
    return (
        doc.Section("Traces", (files, *bad_line_items(result.bad_lines))),
        doc.Text(told, "soft", on="page"),
    )


def bad_line_items(bad: BadLines) -> tuple[doc.Item, ...]:
    """Say which lines could not be used, by reason, and on a terminal the first few."""
    if not bad.num_bad:
        return (doc.Text("Every line of the traces could be used.", on="page"),)
    head = f"{bad.num_bad:,} of {bad.num_lines:,} lines could not be used; the first:"
    counts = pd.DataFrame({"reason": list(bad.counts), "lines": list(bad.counts.values())})
    return (
        doc.Text(head, points=tuple(map(str, bad.first)), on="terminal"),
        doc.Text("Lines that could not be used:", on="page"),
        doc.Table(counts),
    )


def sentences(result: TraceAnalysis) -> tuple[str, ...]:
    """Return what was measured and what to do about it, in sentences that a busy operator can act on."""
    rows = {row["quantity"]: row for row in records(result.table)}
    said = (
        _measured(result),
        "The model runs for {p50} ms at the median, 1 batch in 100 for more than {p99} ms, the longest for "
        "{max} ms.".format_map({name: number(rows["latency_ms"][name]) for name in ("p50", "p99", "max")}),
        _regimes(result.regimes),
        _scheduling(result.throughput["schedule_share"]),
        *_found(result, rows),
        _quiet(result),
        _missing(result.missing),
    )
    return tuple(filter(None, said))


def _measured(result: TraceAnalysis) -> str:
    totals, labels = result.throughput, result.labels
    what = f"{result.num_steps:,} batches"
    what += f" of {labels['llm']}" if labels.get("llm") else ""
    what += f" on {labels['gpu']}" if labels.get("gpu") else ""
    if totals["elapsed_s"] and totals["tokens_per_s"] is not None:
        what += f" in {_duration(totals['elapsed_s'])}" + (f" from {result.start}" if result.start else "")
        what += (
            f": {number(totals['steps_per_s'])} steps and {number(totals['tokens_per_s'])} tokens a second"
        )
        if totals["decode_tokens_per_s"] is not None:
            what += f" ({number(totals['decode_tokens_per_s'])} of them decoded)"
    elif totals["tokens_per_model_run_s"] is not None:
        what += f": {number(totals['tokens_per_model_run_s'])} tokens for each second of model run"
    idle = f"; {counted(result.num_idle, 'idle step')} left out" if result.num_idle else ""
    return f"Measured: {what}{idle}."


def _duration(seconds: float) -> str:
    """Write a time span as a person reads it: ``4 min 44 s``, ``2 h 5 min``."""
    if seconds < 120:
        return f"{number(seconds)} s"
    hours, minutes = divmod(round(seconds) // 60, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {round(seconds) % 60} s"


def _regimes(regimes: pd.DataFrame) -> str:
    rows = {row["regime"]: row for row in records(regimes) if row["steps"]}
    names = {DECODE_ONLY: "only decode", MIXED: "mix prefill and decode", PREFILL_ONLY: "only prefill"}
    parts = [
        f"{percent(row['share'], 1)} of the batches {names[regime]} (median {number(row['p50_ms'])} ms)"
        for regime, row in rows.items()
        if row["share"] >= _RARE or len(rows) == 1
    ]
    text = f"{listed(parts)}."
    if DECODE_ONLY in rows and MIXED in rows and rows[DECODE_ONLY]["p50_ms"]:
        times = rows[MIXED]["p50_ms"] / rows[DECODE_ONLY]["p50_ms"]
        if times >= _LONG_MIXED:
            text += (
                f" A mixed batch makes those that decode wait {number(times, 2)} times as long for a token: "
                "if that is felt, lower the token budget (--max-num-batched-tokens)."
            )
    return text


def _scheduling(share: float | None) -> str:
    if share is None:
        return ""
    verdict = "no bottleneck"
    if share >= LARGE_SHARE:
        verdict = "a bottleneck: give the engine's process a faster or less busy CPU core"
    elif share >= SMALL_SHARE:
        verdict = "worth watching"
    return f"Scheduling takes {percent(share, 1)} of the step time: {verdict}."


def _found(result: TraceAnalysis, rows: Mapping[str, Any]) -> list[str]:
    of_kind = {kind: [f for f in result.findings if f.kind == kind] for kind in NEEDS}
    limits, said = result.limits, list[str]()
    if found := of_kind[SLOW_SCHEDULING]:
        num = sum(f.num_steps for f in found)
        said.append(
            f"{counted(num, 'step')} ({percent(num / rows['schedule_ms']['steps'], 2)}) scheduled for more "
            f"than {limits.slow_schedule_ms:g} ms, {_worst(found)}: such a pause is seldom the scheduler's "
            "own; look for garbage collection and for other load on its CPU at these moments."
        )
    if found := of_kind[SCHEDULE_RISE]:
        said.append(
            f"The schedule time rose suddenly {_times(found)}, {_worst(found)}, by more than the load "
            "explains: look for what else changed on that host then."
        )
    if found := of_kind[QUEUE_BUILD_UP]:
        said.append(
            f"A queue of more than {limits.long_queue:,} requests built up {_times(found)}, "
            f"{_worst(found)}: {_overload(found)}."
        )
    if found := of_kind[KV_CACHE_FULL]:
        said.append(
            f"The KV cache was at least {percent(limits.full_kv_cache)} full {_times(found)}, "
            f"{_worst(found)}: requests get preempted and computed again; lower --max-num-seqs, or give the "
            "cache more memory (--gpu-memory-utilization)."
        )
    return said


def _overload(found: list[Finding]) -> str:
    """Tell bursts from lasting overload, by the longest queue."""
    longest_s = max((finding.duration_s or math.inf) for finding in found)
    if longest_s < _BURST_S and not any(finding.text.endswith(STILL_WAITING) for finding in found):
        return f"bursts, of which the longest drained within {_duration(longest_s)}"
    return "the server was offered more than it serves; add a replica, or admit less"


def _times(found: list[Finding]) -> str:
    return "once" if len(found) == 1 else f"{len(found):,} times"


def _worst(found: list[Finding]) -> str:
    worst = max(found, key=lambda f: f.value)
    value = percent(worst.value, 1) if worst.unit == "share" else f"{worst.value:,.4g} {worst.unit}"
    moment = f", {worst.peak}" if worst.peak else ""
    moment += " into the file" if moment.endswith(" s") else ""
    return f"{'' if len(found) == 1 else 'at worst '}{value} at {worst.source}:{worst.peak_line}{moment}"


def _quiet(result: TraceAnalysis) -> str:
    """Say what was looked for and not found."""
    limits = result.limits
    names = {
        SLOW_SCHEDULING: f"step that scheduled for more than {limits.slow_schedule_ms:g} ms",
        SCHEDULE_RISE: "sudden rise of the schedule time",
        QUEUE_BUILD_UP: f"lasting queue of more than {limits.long_queue:,} requests",
        KV_CACHE_FULL: f"time with the KV cache {percent(limits.full_kv_cache)} full",
    }
    told = {finding.kind for finding in result.findings} | set(_unseen(result.missing))
    absent = [f"no {name}" for kind, name in names.items() if kind not in told]
    return f"There is {listed(absent)}." if absent else ""


def _unseen(missing: tuple[str, ...]) -> list[str]:
    """Kinds of findings that the trace cannot show."""
    return [kind for kind, columns in NEEDS.items() if set(columns) & set(missing)]


def _missing(missing: tuple[str, ...]) -> str:
    if not missing:
        return ""
    unseen = _unseen(missing)
    consequence = f", so it cannot show {listed(unseen)}" if unseen else ""
    return f"The trace does not hold {listed([_MISSING[name] for name in missing])}{consequence}."
