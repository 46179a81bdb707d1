"""Writes the report of a trace's analysis into a folder."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from bayes_sched.files import ANALYSIS, VERSION
from bayes_sched.format import NONE, listed, number, percent, quantity, records
from bayes_sched.reports.page import (
    PageTable,
    ReportFigure,
    ReportPaths,
    date,
    mapping_page,
    page_table,
    render,
    write_figures,
    write_json,
    write_tables,
)
from bayes_sched.reports.plots.trace import (
    queue_and_cache,
    request_distributions,
    schedule_against_model_run,
    time_histogram,
    times_over_time,
    tokens_over_time,
)
from bayes_sched.reports.terminal import WIDTH, bad_lines_text, cut, text_table
from bayes_sched.trace.analysis import TraceAnalysis
from bayes_sched.trace.findings import Finding
from bayes_sched.trace.statistics import MISSING_WORDS, label

_NUMBERS = ("mean", "min", "p50", "p95", "p99", "max")


def analysis_text(analysis: TraceAnalysis, *, num_findings: int) -> str:
    """Return the paragraph, the tables and the findings.

    Parameters
    ----------
    analysis : TraceAnalysis
    num_findings : int
        So many of each kind, the worst ones, are listed.
    """
    paragraph = textwrap.fill(" ".join(analysis.sentences), WIDTH, break_on_hyphens=False)
    parts = [paragraph, _statistics(analysis), _regime_table(analysis), _slowest(analysis)]
    parts += _findings(analysis, num_findings)
    parts.append(bad_lines_text(analysis.bad_lines))
    return "\n\n".join(filter(None, parts))


def _statistics(analysis: TraceAnalysis) -> str:
    rows = [
        [label(row["title"], row["unit"]), *(quantity(row[name], row["unit"]) for name in _NUMBERS)]
        for row in records(analysis.table)
    ]
    text = text_table(["of each batch", *_NUMBERS], rows, right=set(_NUMBERS))
    notes = []
    if analysis.is_step_summed:
        notes.append("Step time: schedule plus model run; the trace holds no other.")
    if analysis.missing:
        notes.append(f"Missing in the trace: {listed([MISSING_WORDS[name] for name in analysis.missing])}.")
    return "\n".join([text, *(f"  {note}" for note in notes)])


def _regime_table(analysis: TraceAnalysis) -> str:
    titles = ["kind of batch", "number", "share", "of time", "mean ms", "p50 ms", "p95 ms", "p99 ms"]
    rows = [
        [
            str(row["regime"]),
            f"{row['steps']:,}",
            percent(row["share"], 1),
            NONE if row["time_share"] is None else percent(row["time_share"], 1),
            *(number(row[name]) for name in ("mean_ms", "p50_ms", "p95_ms", "p99_ms")),
        ]
        for row in records(analysis.regimes)
    ]
    return text_table(titles, rows, right=set(titles[1:]))


def _slowest(analysis: TraceAnalysis) -> str:
    if analysis.slowest.empty:
        return ""
    rows = [
        [
            cut_left(f"{row['source']}:{row['line']}", 30),
            row["moment"] or NONE,
            number(row.get("schedule_ms")),
            number(row["latency_ms"]),
            number(row["times_typical"], 2),
            f"{row['num_prefill_reqs']:.0f}+{row['num_decode_reqs']:.0f}",
            f"{row['total_tokens']:,.0f}",
        ]
        for row in records(analysis.slowest)
    ]
    titles = ["slowest batches", "moment", "sched", "model ms", "x like", "reqs", "tokens"]
    table = text_table(titles, rows, right=set(titles[2:]))
    return f"{table}\n  x like: model run over the median of like batches; reqs: prefill+decode requests"


def cut_left(text: str, width: int) -> str:
    """Shorten a text at its beginning: of a path with a line number the end matters."""
    return text if len(text) <= width else f"…{text[1 - width :]}"


def _findings(analysis: TraceAnalysis, num: int) -> list[str]:
    parts = []
    for kind in dict.fromkeys(finding.kind for finding in analysis.findings):
        found = [finding for finding in analysis.findings if finding.kind == kind]
        worst = {id(finding) for finding in sorted(found, key=lambda f: -f.value)[:num]}
        shown = [finding for finding in found if id(finding) in worst]
        head = f"{kind[0].upper()}{kind[1:]}: {len(found):,}"
        if len(shown) < len(found):
            head += f", the worst {len(shown)} (--json and --report hold all)"
        parts.append("\n".join([head, *map(_finding_lines, shown)]))
    return parts


def _finding_lines(finding: Finding) -> str:
    place = f"  {finding.start or NONE}  {finding.source}:{finding.first_line}"
    text = textwrap.fill(finding.text, WIDTH - 4, break_on_hyphens=False)
    return f"{cut(place, WIDTH)}\n{textwrap.indent(text, '    ')}"


MAX_SHOWN = 50
"""A page lists this many findings of a kind, the worst ones; the file holds all."""


def findings_table(analysis: TraceAnalysis) -> pd.DataFrame:
    """Return one row a finding, with the attributes of `bayes_sched.analysis.Finding`."""
    columns = list(Finding.__dataclass_fields__)
    return pd.DataFrame([finding.to_dict() for finding in analysis.findings], columns=columns)


def slow_schedules(analysis: TraceAnalysis) -> pd.DataFrame:
    """Return every batch whose scheduling took longer than the limit: its place, time and content."""
    columns = [
        *("source", "line", "timestamp", "time_s", "schedule_ms", "latency_ms", "num_prefill_reqs"),
        *("num_decode_reqs", "total_tokens", "num_waiting_reqs"),
    ]
    shown = [name for name in columns if name in analysis.steps]
    if "schedule_ms" not in analysis.steps:
        return analysis.steps.iloc[:0][shown]
    return analysis.steps.loc[analysis.steps["schedule_ms"] > analysis.limits.slow_schedule_ms, shown]


def worst_first(findings: list[Finding], num: int) -> list[Finding]:
    """Return the worst findings of a kind in the order of the trace."""
    kept = {id(finding) for finding in sorted(findings, key=lambda f: -f.value)[:num]}
    return [finding for finding in findings if id(finding) in kept]


def statistics_page(analysis: TraceAnalysis) -> PageTable:
    """Return the table of statistics."""
    return page_table(
        [
            {
                "quantity": label(row["title"], row["unit"]),
                **{
                    name: quantity(row[name], row["unit"])
                    for name in ("mean", "min", "p50", "p95", "p99", "max")
                },
                "batches": row["steps"],
            }
            for row in records(analysis.table)
        ]
    )


def regime_page(analysis: TraceAnalysis) -> PageTable:
    """Return the table of the kinds of batches."""
    return page_table(
        [
            {
                "batches": row["regime"],
                "number": row["steps"],
                "share": percent(row["share"], 1),
                "share of model-run time": percent(row["time_share"] or 0.0, 1),
                "tokens": row["tokens"],
                "mean (ms)": number(row["mean_ms"]),
                "p50 (ms)": number(row["p50_ms"]),
                "p95 (ms)": number(row["p95_ms"]),
                "p99 (ms)": number(row["p99_ms"]),
            }
            for row in records(analysis.regimes)
        ]
    )


def slowest_page(analysis: TraceAnalysis) -> PageTable:
    """Return the table of the slowest batches."""
    return page_table(
        [
            {
                "file and line": f"{row['source']}:{row['line']}",
                "moment": row["moment"] or "",
                "kind": row["regime"],
                **({"schedule (ms)": number(row["schedule_ms"])} if "schedule_ms" in row else {}),
                "model run (ms)": number(row["latency_ms"]),
                "times like batches": number(row["times_typical"], 2),
                "prefill requests": int(row["num_prefill_reqs"]),
                "decode requests": int(row["num_decode_reqs"]),
                "tokens": int(row["total_tokens"]),
            }
            for row in records(analysis.slowest)
        ]
    )


def finding_pages(analysis: TraceAnalysis) -> list[dict[str, object]]:
    """Return for each kind of finding its title, how many there are, and the table of the worst."""
    pages: list[dict[str, object]] = []
    for kind in dict.fromkeys(finding.kind for finding in analysis.findings):
        found = [finding for finding in analysis.findings if finding.kind == kind]
        shown = worst_first(found, MAX_SHOWN)
        rows = [
            {
                "moment": finding.start or "step",
                "file and line": f"{finding.source}:{finding.first_line}",
                "what": finding.text,
            }
            for finding in shown
        ]
        title = kind[0].upper() + kind[1:]
        pages.append({"title": title, "num": len(found), "shown": len(shown), "table": page_table(rows)})
    return pages


def analysis_figures(analysis: TraceAnalysis) -> tuple[ReportFigure, ...]:
    """Return the figures that the columns of the trace allow, in the order of the page; none is drawn yet.

    Parameters
    ----------
    analysis : TraceAnalysis
    """
    has_schedule = "schedule_ms" in analysis.steps
    has_level = any(
        name in analysis.steps for name in ("num_waiting_reqs", "num_running_reqs", "kv_cache_usage")
    )
    figures = [
        ReportFigure(
            "times_over_time",
            "Time of batches over time",
            "The lines are medians, of the batches that only decode and of those that prefill; the band "
            "holds 90% of all batches of each piece of time, the dots are its slowest batch; logarithmic "
            "axes. A dashed vertical line is a sudden rise of the schedule time that the load does not "
            "explain.",
            lambda: times_over_time(analysis),
        ),
        ReportFigure(
            "tokens_over_time",
            "Tokens over time",
            "What the server processed, prefilled tokens on top of decoded ones. A flat top is a server at "
            "its limit, provided that requests were waiting.",
            lambda: tokens_over_time(analysis),
        ),
        ReportFigure(
            "queue_and_cache",
            "Queue and KV cache over time",
            "Lines are means of each piece of time, the light band above reaches to the maximum. Shaded "
            "spans are findings: a queue that built up, a KV cache near full (red line: the limit).",
            lambda: queue_and_cache(analysis),
        ),
        ReportFigure(
            "request_distributions",
            "Requests a batch",
            "Each bar is the share of the batches that hold so many requests of the kind; the scale is "
            "logarithmic, so that rare batches show.",
            lambda: request_distributions(analysis),
        ),
        ReportFigure(
            "model_run_histogram",
            "Model-run time",
            "Batches by the time the model ran, the kinds of batches on top of each other. Dotted lines: "
            "half, 95% and 99% of all batches take no longer.",
            lambda: time_histogram(analysis, "latency_ms"),
        ),
        ReportFigure(
            "schedule_histogram",
            "Schedule time",
            "Batches by the time their scheduling took, the kinds of batches on top of each other. Dotted "
            "lines: half, 95% and 99% of all batches take no longer.",
            lambda: time_histogram(analysis, "schedule_ms"),
        ),
        ReportFigure(
            "schedule_against_model_run",
            "Schedule time against model-run time",
            "On the dashed lines scheduling takes 1%, 10% or 100% of the model run. What lies above the red "
            "line took longer to schedule than the limit.",
            lambda: schedule_against_model_run(analysis),
        ),
    ]
    left_out = set() if has_schedule else {"schedule_histogram", "schedule_against_model_run"}
    left_out |= set() if has_level else {"queue_and_cache"}
    return tuple(figure for figure in figures if figure.name not in left_out)


def render_analysis(
    analysis: TraceAnalysis,
    figures: Mapping[ReportFigure, Path],
    *,
    command: str = "",
    tables: Sequence[str] = (),
) -> str:
    """Return the page as one self-contained HTML document.

    Parameters
    ----------
    analysis : TraceAnalysis
    figures : mapping of ReportFigure to Path
        Each figure and its PNG file, in the order of the page.
    command : str
        What it was made by; may be empty.
    tables : sequence of str
        Names of the CSV files that lie beside the page.
    """
    values = {
        "analysis": analysis,
        "command": command,
        "version": VERSION,
        "made_at": date(datetime.now(UTC).isoformat()),
        "statistics": statistics_page(analysis),
        "regimes": regime_page(analysis),
        "slowest": slowest_page(analysis),
        "findings": finding_pages(analysis),
        "bad_lines": mapping_page(dict(analysis.bad_lines.counts), ("reason", "lines")),
        "table_names": tables,
    }
    return render("analysis.html.j2", values, figures)


def write_analysis(analysis: TraceAnalysis, folder: str | Path, *, command: str = "") -> ReportPaths:
    """Write the report of a trace's analysis.

    ``report.html`` needs no other file. Beside it lie the same numbers with full precision, ``analysis.json``
    and ``tables/*.csv``, and the figures, ``figures/*.png`` and ``*.svg``.

    Parameters
    ----------
    analysis : TraceAnalysis
    folder : str or Path
        Made if it does not exist. Files of the same names are overwritten, others left alone.
    command : str
        What it was made by, to be shown on the page.

    Returns
    -------
    ReportPaths
    """
    folder = Path(folder)
    tables = write_tables(
        {
            "statistics": analysis.table,
            "regimes": analysis.regimes,
            "slowest": analysis.slowest,
            "findings": findings_table(analysis),
            "slow_schedules": slow_schedules(analysis),
            "over_time": analysis.over_time,
        },
        folder / "tables",
    )
    figures = write_figures(analysis_figures(analysis), folder / "figures")
    page, numbers = folder / "report.html", folder / ANALYSIS
    shown = {figure: png for figure, (png, _) in figures.items()}
    html = render_analysis(analysis, shown, command=command, tables=list(tables))
    page.write_text(html, encoding="utf-8")
    write_json({**analysis.to_dict(), "command": command}, numbers)
    return ReportPaths(page, numbers, tables, {figure.name: paths for figure, paths in figures.items()})
