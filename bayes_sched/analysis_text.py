"""The numbers of a trace's analysis as plain text, no wider than a terminal."""

from __future__ import annotations

import textwrap

from bayes_sched.analysis import Finding, TraceAnalysis
from bayes_sched.analysis.statistics import MISSING_WORDS, label
from bayes_sched.numbers import NONE, listed, number, percent, quantity
from bayes_sched.records import records
from bayes_sched.terminal import WIDTH, bad_lines_text, cut, text_table

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
    parts = [paragraph, _statistics(analysis), _regimes(analysis), _slowest(analysis)]
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


def _regimes(analysis: TraceAnalysis) -> str:
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
