"""A pool of servers, as a document."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pandas as pd

from bayes_sched.files import POPULATION, UNSEEN
from bayes_sched.format import counted, cut, cut_start, listed, number, percent, records, span
from bayes_sched.pooling.population import BETWEEN, WITHIN
from bayes_sched.pooling.prior import SUMS
from bayes_sched.pooling.summary import PoolSummary
from bayes_sched.posterior.typical_steps import FULL_PREFILL, MEDIAN_DECODE
from bayes_sched.reports import document as doc

SUMMARY_VERSION = 1
"""Raised when a key of the JSON file changes its meaning or goes."""
SPOKEN = (*SUMS, "tau_B")
"""The coordinates that every model has; the others, such as those of the noise, are left to the tables."""

_SHORT = {"L_8": "floor", "c": "slope", "tau_B": "latency per request"}
_NAME_WIDTH = 30
_AS_PERCENT = 1.5
_NOTABLE = 0.05
_NOT_SEEN = "a server not yet seen"
_STEPS = (
    "Mean latencies by the pooled fits, and on a server not yet seen. The last band is of single steps, "
    "noise included."
)
_ALIKE = (
    "What data identify of a server: the floor L_8 of a small step, of eight decodes (its latency less what "
    "requests and tokens add), whichever term of the equation it comes from, the slope c = w_1 / P_max + "
    "tau_S for large S, the latency per request, and the noise. A factor of 1.1 from server to server: one "
    "standard deviation is 10%. Contraction: 1, all of that factor was learnt from the traces; 0, it is what "
    f"its prior says (from server to server 95% in {100 * BETWEEN.low:.0f}% to a factor of "
    f"{math.exp(BETWEEN.high):.2g}; from trace to trace in {100 * WITHIN.low:.0f}% to "
    f"{100 * (math.exp(WITHIN.high) - 1):.0f}%)."
)
_MEMBERS = (
    "A pooled fit consists of those draws of the trace's own fit that suit the population. Effective draws: "
    "of how many different ones."
)
_MADE = (
    "The fits of the traces stand for their traces: what the population says of a trace weighs its own "
    "draws, so no trace was fitted twice, and no approximation enters but the number of draws. "
    "`members/NAME` and `members/unseen` are fits like others; the next trace may take its prior from this "
    "folder."
)


@doc.report.register
def _(result: PoolSummary, *, command: str = "") -> doc.Document:
    population = result.population
    command = command or population.command or ""
    sentences = paragraph(result)
    frames = {
        "spread": result.spread,
        "alone_and_pooled": result.changes,
        "members": result.members,
        "typical_steps": result.steps,
        "convergence": result.convergence.table.rename_axis("variable").reset_index(),
    }
    good = (doc.Text("converged", "good", on="page"),)
    what = f"model {population.model}, {population.noise} noise"
    files = ["summary.json", POPULATION]
    return doc.Document(
        title=f"Servers that borrow strength: {population.name}",
        name=f"Pool: {population.name}",
        subtitle=doc.made(*population.servers, what, at=population.created_at),
        head=good if result.converged else doc.unconverged(population.problems),
        sections=(
            doc.Text(" ".join(sentences), "lead"),
            *doc.beware(result.warnings),
            _steps(result),
            _alike(result),
            _changes(result),
            doc.Section("Convergence", _gate(result)),
            doc.how_made(command, doc.Text(_MADE, on="page"), files=files, frames=list(frames)),
        ),
        numbers=_numbers(result, sentences),
        frames=frames,
    )


def _numbers(result: PoolSummary, sentences: list[str]) -> dict[str, Any]:
    population, gate = result.population, result.convergence
    described = ("name", "model", "noise", "command", "created_at")
    counts = ("num_draws", "num_gradients", "worst_r_hat", "worst_ess")
    return {
        "summary_version": SUMMARY_VERSION,
        **{name: getattr(population, name) for name in described},
        "server_of_trace": dict(population.server_of_trace),
        "probability": result.probability,
        "converged": result.converged,
        "problems": list(population.problems),
        "text": " ".join(sentences),
        "warnings": list(result.warnings),
        "spread": records(result.spread),
        "changes": records(result.changes),
        "members": records(result.members),
        "typical_steps": records(result.steps),
        "gate": {
            "num_divergences": gate.num_divergences,
            "e_bfmi": gate.e_bfmi.tolist(),
            **{name: getattr(gate, name) for name in counts},
            "ess_per_1000_gradients": gate.ess_per_1000_gradients if gate.num_gradients else None,
        },
        "pooling_seconds": result.seconds,
    }


def _steps(result: PoolSummary) -> doc.Section:
    share = percent(result.probability)
    columns = (
        *doc.titled(step="step", batch_size="B", total_tokens="S"),
        doc.Column("trace", "server of", lambda name: _NOT_SEEN if name == UNSEEN else name),
        doc.Column("mean_median_ms", "mean (ms)"),
        doc.Column(("mean_lower_ms", "mean_upper_ms"), f"mean, {share} credible (ms)", span),
        doc.Column(("lower_ms", "upper_ms"), f"{share} of steps (ms)", span),
        doc.Column("extrapolation", "extrapolation"),
    )
    ordered = result.steps.sort_values(["batch_size", "total_tokens"], kind="stable")
    caption = (
        "Lines are mean latencies of the pooled servers, thin where their traces hold no such steps. The "
        f"band holds the mean latency of a server not yet seen with {share} probability: how far servers "
        "differ, "
        f"and not what single steps do. Both axes are logarithmic. {result.typical_load}".strip()
    )
    title = "What a server not yet seen is expected to do"
    return doc.Section(
        "What steps take",
        (
            doc.Text(_STEPS, on="page"),
            doc.Table(ordered, columns, on="page"),
            doc.figure("servers.pool_latency", title, caption, result),
        ),
    )


def _alike(result: PoolSummary) -> doc.Section:
    share = percent(result.probability)
    fixed = "{:.2f}".format
    columns = (
        doc.Column("coordinate", "coordinate", _named, short=""),
        doc.Column("coordinate", "", short="factor"),
        doc.Column("unit", "unit"),
        doc.Column(_ends("mean"), f"mean server ({share} interval)", _value, short=""),
        doc.Column(_ends("between"), "from server to server, factor", _factor, short="from server to server"),
        doc.Column("between_contraction", "its contraction", fixed, short=""),
        doc.Column(_ends("within"), "from trace to trace, factor", _factor, short="from trace to trace"),
        doc.Column("within_contraction", "contraction", fixed, short=""),
        doc.Column(_ends("unseen"), f"{_NOT_SEEN} ({share})", _value, short=f"unseen server, {share}"),
    )
    return doc.Section(
        "How alike the servers are", (doc.Text(_ALIKE, on="page"), doc.Table(result.spread, columns))
    )


def _changes(result: PoolSummary) -> doc.Section:
    share = percent(result.probability)
    members = (
        *_both("trace", "trace", partial(cut_start, width=_NAME_WIDTH)),
        *_both("server", "server", partial(cut, width=_NAME_WIDTH)),
        doc.Column("steps", "steps"),
        doc.Column("draws", "draws", short=""),
        doc.Column("effective_draws", "effective draws, pooled", "{:,.0f}".format, short="effective draws"),
        doc.Column("converged", "converged alone", lambda is_so: "yes" if is_so else "NO", short=""),
    )
    changes = (
        doc.Column("coordinate", "coordinate"),
        doc.Column("unit", "unit", short=""),
        *_both("trace", "trace", partial(cut_start, width=_NAME_WIDTH)),
        doc.Column(_ends("alone"), f"alone ({share} interval)", _value, short=""),
        doc.Column(_ends("alone")[1:], "", partial(span, digits=4), short="alone"),
        doc.Column(_ends("pooled"), f"pooled ({share} interval)", _value, short=""),
        doc.Column(_ends("pooled")[1:], "", partial(span, digits=4), short="pooled"),
        doc.Column("width_ratio", "width, pooled over alone", "{:.2f}".format, short="width"),
    )
    order = result.spread["coordinate"].tolist()
    ordered = result.changes.sort_values(
        "coordinate", key=lambda names: names.map(order.index), kind="stable"
    )
    spoken = ordered[ordered["coordinate"].isin(SPOKEN)]
    caption = (
        f"One panel a quantity that data identify, logarithmic. Grey, the {share} interval of a trace by "
        "itself; blue, with the strength of the others. Where a trace says enough, the two are alike. The "
        f"green band is where a server not yet seen is expected with {share} probability."
    )
    title = "What each trace says alone, and with the others"
    return doc.Section(
        "What pooling changed",
        (
            doc.figure("servers.pool_shrinkage", title, caption, result),
            doc.Table(result.members, members, failed=[not is_so for is_so in result.members["converged"]]),
            doc.Text(_MEMBERS, on="page"),
            doc.Table(spoken, changes, on="terminal"),
            doc.Details("Each trace alone and pooled", (doc.Table(ordered, changes),)),
        ),
    )


def _gate(result: PoolSummary) -> tuple[doc.Text, ...]:
    gate = result.convergence
    took = "" if result.seconds is None else f", {result.seconds:.0f} s"
    work = (
        f"{gate.num_gradients:,} gradients, {number(gate.ess_per_1000_gradients)} effective draws per 1,000 "
        f"of them{took}."
    )
    e_bfmi = ", ".join(f"{value:.2f}" for value in gate.e_bfmi)
    asked = (
        "The gate asks of every variable of the population an R-hat of at most 1.01 and effective sample "
        "sizes of at least 400, no divergence, of every chain an E-BFMI of at least 0.3, and of every pooled "
        f"fit at least 400 effective draws. Here: R-hat at most {gate.worst_r_hat:.4f}, effective sample "
        f"sizes of at least {gate.worst_ess:,.0f}, {gate.num_divergences:,} divergences in "
        f"{gate.num_draws:,} draws, E-BFMI {e_bfmi}; {work}"
    )
    return doc.Text(asked, on="page"), doc.Text(f"{gate.text} Population: {work}", on="terminal")


def _both(source: str, title: str, short: Callable[..., str]) -> tuple[doc.Column, doc.Column]:
    """Return a column in full on a page, and shortened on a terminal."""
    return doc.Column(source, title, short=""), doc.Column(source, "", short, short=title)


def _ends(key: str) -> tuple[str, str, str]:
    return key, f"{key}_lower", f"{key}_upper"


def _value(middle: float, lower: float, upper: float) -> str:
    return f"{number(middle)} ({span(lower, upper)})"


def _factor(middle: float, lower: float, upper: float) -> str:
    """Write a standard deviation of a logarithm as a factor, with its interval."""
    return _value(*(math.exp(value) for value in (middle, lower, upper)))


def _named(coordinate: str) -> str:
    """Return a coordinate's name, with what it is where that is short."""
    return f"{_SHORT[coordinate]} {coordinate}" if coordinate in _SHORT else coordinate


def paragraph(result: PoolSummary) -> list[str]:
    """Return the sentences that a busy person can act on."""
    return [
        *_pooled(result),
        *_differ(result),
        _changed(result.changes, result.probability),
        *_expected(result.steps, result.probability),
    ]


def _pooled(result: PoolSummary) -> list[str]:
    population = result.population
    servers = list(population.server_of_trace.values())
    each = [f"{server} ({counted(servers.count(server), 'trace')})" for server in population.servers]
    pooled = (
        f"Pooled: {counted(len(servers), 'trace')} of {counted(len(each), 'server')}, {listed(each)}; model "
        f"{population.model}, {population.noise} noise (result {population.name})."
    )
    if not result.converged:
        problem = population.problems[0]
        bad = f"The pool has NOT CONVERGED: {problem}. Do not act on the numbers below until it has."
        return [pooled, bad]
    few, many = result.members["effective_draws"].min(), result.members["effective_draws"].max()
    rests = f"each pooled fit rests on {few:,.0f} to {many:,.0f} effective draws of its own."
    return [pooled, f"The pool converged; {rests}"]


def _differ(result: PoolSummary) -> list[str]:
    rows = [row for row in records(result.spread) if row["coordinate"] in SPOKEN]
    interval = f" (one standard deviation, {percent(result.probability)} interval in brackets)"
    servers = list(result.population.server_of_trace.values())
    between = f"Servers differ by {_differences(rows, 'between')}"
    if len(set(servers)) == len(servers):
        return [f"{between}{interval}."]
    return [f"Traces of one server differ by {_differences(rows, 'within')}{interval}.", f"{between}."]


def _differences(rows: list[dict[str, Any]], key: str) -> str:
    return listed([f"{difference_text(row, key)} in the {_named(row['coordinate'])}" for row in rows])


def difference_text(row: Mapping[str, Any], key: str) -> str:
    """Write a standard deviation of a logarithm with its interval: in percent, or a factor if it is large."""
    ends = [row[name] for name in _ends(key)]
    if math.exp(ends[2]) >= _AS_PERCENT:
        return f"a factor of {_factor(*ends)}"
    middle, low, high = (percent(math.exp(value) - 1.0) for value in ends)
    return f"{middle} ({low} to {high})"


def _changed(changes: pd.DataFrame, probability: float) -> str:
    size = (1.0 - changes["width_ratio"]).abs().combine(changes["shift"].abs(), max)
    row = records(changes.loc[[size.idxmax()]])[0]
    if size.max() < _NOTABLE:
        return "Pooling changed no interval by more than 5%: each trace says enough by itself."
    unit = "" if row["unit"] == "1" else f" {row['unit']}"
    return (
        f"Pooling changed most what is known of the {_named(row['coordinate'])} of {row['trace']}: "
        f"{span(row['alone_lower'], row['alone_upper'])}{unit} by itself, "
        f"{span(row['pooled_lower'], row['pooled_upper'])} pooled ({percent(probability)} intervals)."
    )


def _expected(steps: pd.DataFrame, probability: float) -> list[str]:
    rows = {row["step"]: row for row in records(steps[steps["trace"] == UNSEEN])}
    each = [
        f"{what} {_step(row)} is expected to take {number(row['mean_median_ms'])} ms "
        f"({span(row['mean_lower_ms'], row['mean_upper_ms'])})"
        for name, what in ((MEDIAN_DECODE, "a decode step of"), (FULL_PREFILL, "a full prefill step of"))
        if (row := rows.get(name)) is not None
    ]
    how_far = f"({percent(probability)} interval in brackets: how far servers differ)"
    return [f"On a server not yet seen, {listed(each)} on average {how_far}."] if each else []


def _step(row: Mapping[str, Any]) -> str:
    requests = counted(row["batch_size"], "request")
    if row["batch_size"] == row["total_tokens"]:
        return requests
    return f"{row['total_tokens']:,} tokens ({requests})"
