"""A comparison of servers, as a document."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd

from bayes_sched.comparison.compare import MAX_PAIRS, Comparison
from bayes_sched.comparison.throughput import COST
from bayes_sched.comparison.verdicts import EQUIVALENT, IN_TRACES, ON_GRID, UNDECIDED
from bayes_sched.files import COMPARISON
from bayes_sched.format import NONE, count, counted, listed, number, percent, records, span
from bayes_sched.reports import document as doc
from bayes_sched.steps import POSSIBLE

COMPARISON_VERSION = 1
"""Raised when a key of the JSON file changes its meaning or goes."""

_KEYS = {"latency": "grid", "wanted_data": "wanted", "throughput_and_cost_ratios": "money"}  # in JSON
_RATIO = ("ratio_median", "ratio_lower", "ratio_upper")
_LABEL_WIDTH = 13
_NARROW = 1.02
_ALARM = (
    "**Do not act on these numbers.** A fit that has not converged may be wrong anywhere; fit its trace "
    "again."
)
_OFF_BY = (
    "The equation is off by: nine in ten medians of often seen steps lie within that of it. No interval "
    "below contains this error."
)
_SHARES = (
    "Covered steps lie on the grid, inside the outline of every trace; measured ones are those of them like "
    "which every trace holds at least ten; the steps of the traces count as often as they occur, every trace "
    "alike."
)
_FURTHER = (
    "The undecided steps at which the ratio is least known. The data that would decide are a rough estimate: "
    "an interval narrows with the square root of the data, and the ratio stays where it is."
)
_RATIO_MAP = (
    "The ratio of the mean latencies: purple, the first server is faster; orange, slower; white, the ratio "
    "lies in the region of practical equivalence. Crosses are steps where the data leave it undecided; dots "
    "are steps of the traces, far from which the equation fills in; hatched parts are extrapolation for at "
    "least one server. A step cannot hold fewer tokens than requests."
)
_PROBABILITY_MAP = (
    "Left, the probability that the first server is faster on average: what is known, which more data would "
    "sharpen. Right, that a single step on the first beats a single step on the second: noise included, "
    "which no data take away."
)
_FOREST = (
    "Filled marks are identified on both servers; right of the grey bar they are larger on the first. Hollow "
    "ones are not identified: they stand where the priors put them, and no verdict is given. Logarithmic "
    "axis."
)


@doc.report.register
def _(result: Comparison, *, command: str = "") -> doc.Document:
    sentences = paragraph(result)
    frames = {
        "latency": result.table,
        "steps": result.steps,
        "shares": result.shares,
        "wanted_data": result.further_data,
        "equivalents": result.equivalents,
        "throughput": result.throughput,
        "throughput_and_cost_ratios": result.cost_ratios,
        "parameters": result.parameters,
        "parameter_ratios": result.parameter_ratios,
        "differences": result.differences,
    }
    names = " against ".join(result.labels)
    what = "servers" if result.compares_servers else "GPUs"
    num_draws = result.mean_latency_ms.sizes["draw"]
    paired = (
        f"{num_draws:,} draws of each posterior, paired at random (seed {result.seed}): posteriors of "
        "different traces are independent."
    )
    files = ["summary.json", COMPARISON]
    return doc.Document(
        title=names,
        name=f"Comparison: {names}",
        subtitle=doc.made(f"{what} compared by the latency of their scheduler steps"),
        head=_head(result),
        sections=(
            doc.Text(" ".join(sentences), "lead"),
            *doc.beware(result.warnings),
            _members(result),
            _latency(result),
            _equivalents(result),
            _throughput(result),
            _parameters(result),
            doc.Text(result.rule, on="terminal"),
            doc.how_made(command, doc.Text(paired, on="page"), files=files, frames=list(frames)),
        ),
        numbers={
            **_numbers(result, num_draws),
            "text": " ".join(sentences),
            "warnings": list(result.warnings),
            **{_KEYS.get(name, name): records(frames[name]) for name in ("shares", "steps", *frames)},
            "command": command,
        },
        frames=frames,
    )


def _numbers(result: Comparison, num_draws: int) -> dict[str, Any]:
    settings = ("rope", "probability", "slo_ms", "slo_quantile", "seed")
    return {
        "comparison_version": COMPARISON_VERSION,
        "labels": list(result.labels),
        "fits": [
            {
                "label": member.label,
                "name": member.fit.metadata.name,
                "labels": dict(member.fit.metadata.labels),
                "trace_sha256": member.fit.metadata.trace_sha256,
                "converged": member.fit.metadata.converged,
                "problems": list(member.fit.metadata.problems),
                "price_per_hour": member.price_per_hour,
            }
            for member in result.members
        ],
        **{name: getattr(result, name) for name in settings},
        "num_draws": num_draws,
        "converged": result.converged,
        "compares_servers": result.compares_servers,
        "rule": result.rule,
    }


def _head(result: Comparison) -> tuple[doc.Text, ...]:
    head = []
    if not result.converged:
        labels = [member.label for member in result.members if not member.fit.metadata.converged]
        head += [doc.Text(f"NOT CONVERGED: {', '.join(labels)}", "bad", on="page")]
        head += [doc.Text(_ALARM, "error", on="page")]
    if result.compares_servers:
        head.append(doc.Text("a comparison of servers, not of GPUs", "bad", on="page"))
    return tuple(head)


def _members(result: Comparison) -> doc.Section:
    frame = pd.DataFrame(
        [
            {
                "label": member.label,
                "name": member.fit.metadata.name,
                "gpu": member.fit.metadata.labels.get("gpu"),
                "llm": member.fit.metadata.labels.get("llm"),
                "steps": member.fit.metadata.rows.used,
                "discrepancy": member.discrepancy,
                "price": member.price_per_hour,
                "converged": member.fit.metadata.converged,
            }
            for member in result.members
        ]
    )
    columns = (
        *doc.titled(label="label", name="result", gpu="GPU", llm="LLM", steps="steps"),
        doc.Column("discrepancy", "equation off by", lambda x: NONE if x is None else f"< {percent(x, 1)}"),
        doc.Column("price", "price an hour"),
        doc.Column("converged", "converged", lambda x: "yes" if x else "NO"),
    )
    members = doc.Table(frame, columns, failed=list(~frame["converged"]), on="page")
    items: list[doc.Item] = [members, doc.Text(_OFF_BY, on="page")]
    if len(result.differences):
        columns = (*doc.titled(what="what"), *(doc.Column(label, label) for label in result.labels))
        differing: list[doc.Item] = [doc.Table(result.differences, columns, on="page")]
        if result.compares_servers:
            has_part = "Whatever differs besides the GPU has its part in every number below."
            differing.append(doc.Text(has_part, on="page"))
        items.append(doc.Section("What differs", tuple(differing)))
    return doc.Section("What is compared", tuple(items))


def _latency(result: Comparison) -> doc.Section:
    words = ("faster", "slower", EQUIVALENT, UNDECIDED)
    shares = (
        *_servers("verdicts"),
        doc.Column("of", "of the"),
        doc.Column("num_steps", "distinct", short="steps"),
        *(doc.Column(word, word, percent) for word in words),
        doc.Column(("ratio_smallest", "ratio_largest"), "ratio", span, short=""),
    )
    items: list[doc.Item] = [
        doc.Text(f"{result.rule} Ratios are those of the first server over the other.", on="page"),
        doc.Table(result.shares, shares),
        doc.Text(_SHARES, on="page"),
    ]
    if len(result.steps):
        items.append(doc.Section("Typical steps that all traces cover", _steps(result)))
    items += _map_figures(result)
    if len(result.further_data):
        further = (
            *_servers(),
            *doc.titled(batch_size="B", total_tokens="S"),
            doc.Column(_RATIO, "ratio", ratio_text),
            *doc.titled(measure="measure on", steps_seen="such steps so far"),
            doc.Column("times_data", "data that would decide", _times),
        )
        shown = (doc.Text(_FURTHER, on="page"), doc.Table(result.further_data, further, on="page"))
        items.append(doc.Section("Further data that would decide", shown))
    return doc.Section("Latency", tuple(items))


def _steps(result: Comparison) -> tuple[doc.Item, ...]:
    """Return the typical steps: one table on a page, on a terminal one a pair, headed by its names."""
    columns = (
        doc.Column("step", "step", short="mean (ms)"),
        *doc.titled(batch_size="B", total_tokens="S"),
        *doc.titled("page", gpu="server", gpu_ms="mean (ms)", other="against", other_ms="its mean (ms)"),
        *doc.titled("terminal", gpu_ms="first", other_ms="second"),
        doc.Column(_RATIO, f"ratio ({percent(result.probability)} interval)", ratio_text, short="ratio"),
        doc.Column("p_faster", "P(faster on average)", certainty, short=""),
        doc.Column("p_faster", "", _compact, short="P(faster)"),
        doc.Column("p_step_faster", "P(a step is faster)", certainty, short=""),
        doc.Column("verdict", "verdict"),
    )
    items: list[doc.Item] = [doc.Table(result.steps, columns, on="page")]
    for (gpu, other), group in result.steps.groupby(["gpu", "other"], sort=False):
        items.append(doc.Text(f"{gpu} (first) / {other} (second)", on="terminal"))
        items.append(doc.Table(group, columns, on="terminal"))
    return tuple(items)


def _map_figures(result: Comparison) -> list[doc.Item]:
    rest = _rest(result)
    bands = (
        f"Lines are mean latencies, bands are where {percent(result.probability)} of single steps fall. A "
        "thin line without a band is extrapolation."
    )
    return [
        doc.figure("servers.ratio_map", "Which is faster where", f"{_RATIO_MAP}{rest}", result),
        doc.figure("servers.probability_map", "How sure that is", f"{_PROBABILITY_MAP}{rest}", result),
        doc.figure("servers.comparison_bands", "Latencies side by side", bands, result),
    ]


def _rest(result: Comparison) -> str:
    num_pairs = result.maps.sizes["pair"]
    rest = f" The first {MAX_PAIRS} of {num_pairs} pairs; the tables hold all."
    return rest if num_pairs > MAX_PAIRS else ""


def _equivalents(result: Comparison) -> doc.Section:
    columns = (
        *doc.titled(batch_size="decodes", gpu="on"),
        doc.Column(("median", "limit"), "cost what", _decodes),
        doc.Column("other", "on the server"),
        doc.Column(("lower", "upper", "limit"), f"{percent(result.probability)} interval", _decodes_span),
        doc.Column("extrapolation", "extrapolation"),
    )
    about = "How many decoding requests one server serves in the time that the other takes for so many."
    return doc.Section(
        "Equivalents", (doc.Text(about, on="page"), doc.Table(result.equivalents, columns, on="page"))
    )


def _throughput(result: Comparison) -> doc.Section:
    has_prices = any(member.price_per_hour is not None for member in result.members)
    about = (
        "Tokens a second of steps one after the other, at mean latency; the time between steps is not in it."
    )
    if result.slo_ms:
        about += (
            " Within a limit: the best step that the server's trace covers and of which "
            f"{100 * result.slo_quantile:g}% stay within {result.slo_ms:g} ms."
        )
    if has_prices:
        about += " Costs are for a server that is never idle."
    interval = f"{percent(result.probability)} interval"
    short_server = doc.Column("gpu", "", _short, short="server")
    costs = ("cost", "cost_lower", "cost_upper")
    tokens = (
        doc.Column("case", "case"),
        *doc.titled("page", gpu="server"),
        short_server,
        doc.Column("batch_size", "B", count, short=""),
        doc.Column("total_tokens", "S", count, short=""),
        *doc.titled("page", set_by="set by"),
        doc.Column("tokens_per_s", "tokens/s"),
        doc.Column(("tokens_per_s_lower", "tokens_per_s_upper"), interval, partial(span, digits=4)),
        *doc.titled("page", cost="cost of a million"),
        doc.Column(costs, f"its {interval}", _cost_span, short=""),
    )
    cost = (
        doc.Column("case", "case"),
        short_server,
        *doc.titled("terminal", cost="cost/million"),
        doc.Column(costs, "", _cost_span, short=interval),
    )
    ratios = (
        *doc.titled(case="case", quantity="quantity"),
        *_servers(),
        doc.Column(_RATIO, f"ratio ({interval})", ratio_text),
        doc.Column("p_better", "P(better)", certainty),
        doc.Column("verdict", "verdict"),
    )
    items: list[doc.Item] = [doc.Text(about, on="page")]
    if len(result.throughput):
        items.append(doc.Table(result.throughput, tokens))
    if has_prices and len(result.throughput):
        items.append(doc.Table(result.throughput, cost, on="terminal"))
    if len(result.cost_ratios):
        items.append(doc.Table(result.cost_ratios, ratios, on="page"))
    return doc.Section(f"Throughput{' and cost' if has_prices else ''}", tuple(items))


def _parameters(result: Comparison) -> doc.Section:
    medians = result.parameters.set_index(["gpu", "name"])["median"]
    ratios = result.parameter_ratios
    first, second = (
        medians.loc[pd.MultiIndex.from_frame(ratios[[of, "name"]])].to_numpy() for of in ("gpu", "other")
    )
    page = {"unit": "unit", "gpu": "server", "median": "median", "other": "against"}
    columns = (
        doc.Column("name", "name", short="parameter"),
        *doc.titled("page", **page, other_median="its median"),
        doc.Column(
            ("difference", "difference_lower", "difference_upper"), "difference", interval_text, short=""
        ),
        doc.Column(("gpu", "other"), "", _pair, short="ratio of"),
        doc.Column(_RATIO, "ratio", ratio_text),
        doc.Column(("identified", "p_greater"), "P(greater)", _known_certainty, short=""),
        *doc.titled("page", verdict="verdict"),
        doc.Column("verdict", "", lambda verdict: verdict.partition(" on ")[0], short="verdict"),
    )
    about = (
        "Verdicts only where the data identify the quantity well on both servers (a contraction of at least "
        "0.9)."
    )
    title = "Parameters, and combinations that data identify"
    return doc.Section(
        "Parameters",
        (
            doc.Text(about, on="page"),
            doc.figure("servers.parameter_forest", title, f"{_FOREST}{_rest(result)}", result),
            doc.Table(ratios.assign(median=first, other_median=second), columns),
        ),
    )


def _servers(short: str = "") -> tuple[doc.Column, ...]:
    """Return the columns of a pair: two on a page, one on a terminal, where names are cut."""
    pair = doc.Column(("gpu", "other"), "", _pair, short=short)
    return *doc.titled("page", gpu="server", other="against"), pair


def _pair(gpu: str, other: str) -> str:
    return f"{_short(gpu)} / {_short(other)}"


def _short(label: str) -> str:
    """Shorten at the beginning: names of results differ at their ends."""
    return label if len(label) <= _LABEL_WIDTH else f"…{label[2 - _LABEL_WIDTH :]}"


def ratio_text(median: float, lower: float, upper: float) -> str:
    """Write a ratio with its interval, with a digit more where that is narrow."""
    return interval_text(median, lower, upper, digits=4 if upper < _NARROW * lower else 3)


def interval_text(middle: float, lower: float, upper: float, digits: int = 3) -> str:
    """Write a number with its interval."""
    return f"{number(middle, digits)} ({span(lower, upper, digits)})"


def certainty(p: float | None) -> str:
    """Write a probability; never as certain."""
    if p is None:
        return "unknown"
    if p > 0.999:
        return "above 99.9%"
    return "below 0.1%" if p < 0.001 else percent(p, 1)


def _known_certainty(is_known: bool, p: float) -> str:
    return certainty(p) if is_known else NONE


def _compact(p: float | None) -> str:
    return certainty(p).replace("above ", "> ").replace("below ", "< ")


def _times(times: float | None) -> str:
    return "hardly any" if times is None else f"{number(times, 2)} times"


def _decodes(value: float | None, limit: float) -> str:
    if value is None:
        return f"> {limit:,.0f}"
    return "< 1" if value == 0 else number(value)


def _decodes_span(lower: float | None, upper: float | None, limit: float) -> str:
    return f"{_decodes(lower, limit)} to {_decodes(upper, limit)}"


def _cost_span(cost: float | None, lower: float | None, upper: float | None) -> str:
    return NONE if cost is None else span(lower, upper, 4)


def paragraph(result: Comparison) -> list[str]:
    """Return what a person can paste; of more than one pair only the verdicts and the costs."""
    found = _verdict_sentences(result)
    if result.maps.sizes["pair"] > 1:
        found += _cost_sentences(result)
    else:
        found += _step_sentences(result) + _equivalent_sentences(result) + _cost_sentences(result)
        found += _parameter_sentences(result) + _further_sentences(result)
    return [*found, _region_sentence(result)]


def _verdict_sentences(result: Comparison) -> list[str]:
    """Return for each pair how often which verdict is given."""
    sentences = []
    for (first, second), group in result.shares.groupby(["gpu", "other"], sort=False):
        rows = {row["of"]: row for row in records(group)}
        grid = rows[ON_GRID]
        text = (
            f"Against {second}, {first} is {_shares(grid, result.rope)} of the {grid['num_steps']:,} steps "
            f"of a logarithmic grid that all traces cover (ratio of the mean latencies from "
            f"{number(grid['ratio_smallest'])} to {number(grid['ratio_largest'])})"
        )
        if (often := rows.get(IN_TRACES)) is not None:
            said = _shares(often, result.rope)
            text += f"; over the steps that the traces hold, as often as they occur, it is {said}"
        sentences.append(f"{text}.")
    return sentences


def _shares(row: Mapping[str, Any], rope: float) -> str:
    names = {
        "faster": f"faster by more than {100 * rope:g}% at",
        "slower": f"slower by more than {100 * rope:g}% at",
        EQUIVALENT: "equivalent at",
        UNDECIDED: "undecided at",
    }
    return listed([f"{text} {percent(row[word])}" for word, text in names.items() if row[word] >= 0.005])


def _ratio_of(row: Mapping[str, Any]) -> str:
    return ratio_text(*(row[name] for name in _RATIO))


def _step_sentences(result: Comparison) -> list[str]:
    """Return for each pair what the typical steps take."""
    return [
        f"The {row['step']} ({counted(row['batch_size'], 'request')}, "
        f"{row['total_tokens']:,} tokens) takes {number(row['gpu_ms'])} ms on {row['gpu']} and "
        f"{number(row['other_ms'])} ms on {row['other']} on average, ratio {_ratio_of(row)}: "
        f"{row['gpu']} is faster on average with probability {certainty(row['p_faster'])}, in a single step "
        f"with {certainty(row['p_step_faster'])}."
        for row in records(result.steps)
    ]


def _equivalent_sentences(result: Comparison) -> list[str]:
    """Return for each ordered pair the equivalent of 32 decodes, or of the most within what is covered."""
    sentences = []
    for _, group in result.equivalents.groupby(["gpu", "other"], sort=False):
        covered = group[~group["extrapolation"]]
        chosen = group[group["batch_size"] == 32] if covered.empty else covered.iloc[[-1]]
        sentences += [equivalent_sentence(row) for row in records(chosen)]
    return [f"{'; '.join(sentences)}."] if sentences else []


def equivalent_sentence(row: Mapping[str, Any]) -> str:
    """Return a row of the equivalents in words."""

    def shown(value: float | None) -> str:
        if value is None:
            return f"more than {row['limit']:,.0f}"
        return "less than 1" if value == 0 else number(value)

    decodes = "1 decode" if row["batch_size"] == 1 else f"{row['batch_size']:,} decodes"
    note = "; an extrapolation" if row["extrapolation"] else ""
    return (
        f"{decodes} on {row['gpu']} cost{'s' if row['batch_size'] == 1 else ''} what {shown(row['median'])} "
        f"on {row['other']} do ({shown(row['lower'])} to {shown(row['upper'])}{note})"
    )


def _cost_sentences(result: Comparison) -> list[str]:
    """Return what a million tokens costs, in two cases at most: within the latency limit if there is one."""
    costs = result.cost_ratios[result.cost_ratios["quantity"] == COST]
    cases = costs["case"].drop_duplicates().tolist()[-2:]
    rates = {(rate["case"], rate["gpu"]): rate for rate in records(result.throughput)}
    sentences = []
    for row in records(costs[costs["case"].isin(cases)]):
        each = [(label, rates[row["case"], label]) for label in (row["gpu"], row["other"])]
        prices = [
            f"{number(rate['cost'])} ({span(rate['cost_lower'], rate['cost_upper'])}) on {label}"
            for label, rate in each
        ]
        sentences.append(
            f"A million tokens cost {listed(prices)} ({row['case']}): {row['gpu']} is cheaper with "
            f"probability {certainty(row['p_better'])}."
        )
    return sentences


def _parameter_sentences(result: Comparison) -> list[str]:
    """Return which parameters differ, and on which there is no verdict."""
    sentences = []
    chosen = result.parameter_ratios[result.parameter_ratios["kind"] != "noise"]
    for (first, second), group in chosen.groupby(["gpu", "other"], sort=False):
        known = records(group[group["identified"]])
        differing = [
            f"{row['name']} is {row['verdict']} ({_ratio_of(row)} times)"
            for row in known
            if row["verdict"] in {"lower", "higher"}
        ]
        same = [row["name"] for row in known if row["verdict"] == EQUIVALENT]
        open_names = group.loc[~group["identified"], "name"].tolist()
        text = [f"On {first} against {second}, {listed(differing)}"] if differing else []
        text += [f"{listed(same)} {'is' if len(same) == 1 else 'are'} equivalent"] if same else []
        if open_names:
            text.append(f"no verdict on {listed(open_names)}, which the data do not identify on both")
        if text:
            sentences.append(f"{'; '.join(text)}.")
    return sentences


def _further_sentences(result: Comparison) -> list[str]:
    """Return for each pair which further steps would decide most."""
    sentences = []
    for _, group in result.further_data.groupby(["gpu", "other"], sort=False):
        row = records(group)[0]
        times = row["times_data"]
        much = (
            "the ratio lies so near to the end of the region of equivalence that data will hardly decide"
            if times is None
            else f"about {number(times, 2)} times as much data would decide"
        )
        sentences.append(
            f"Where {row['gpu']} against {row['other']} is undecided, it is least known at steps like B = "
            f"{row['batch_size']:,}, S = {row['total_tokens']:,} (ratio {_ratio_of(row)}), most of all on "
            f"{row['measure']}, whose trace has {row['steps_seen']:,} such steps: {much}."
        )
    return sentences


def _region_sentence(result: Comparison) -> str:
    """Say which part of the grid all traces cover."""
    grid = result.grid
    shared = grid["in_region"].all("gpu")
    b = grid["batch_size"].where(shared.any("total_tokens"), drop=True)
    s = grid["total_tokens"].where(shared.any("batch_size"), drop=True)
    return (
        f"The traces of {listed(list(result.labels))} share {int(shared.sum()):,} of "
        f"{int(grid[POSSIBLE].sum()):,} points of the grid: {int(b.min()):,} to {int(b.max()):,} requests, "
        f"{int(s.min()):,} to {int(s.max()):,} tokens a step, not in every combination; elsewhere at least "
        "one server is extrapolated."
    )
