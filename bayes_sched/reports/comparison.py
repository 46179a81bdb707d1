"""Writes a comparison into a folder."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import xarray as xr

from bayes_sched.comparison.compare import Comparison
from bayes_sched.comparison.members import misfit_of
from bayes_sched.comparison.words import certainty, ratio_text
from bayes_sched.files import COMPARISON, VERSION
from bayes_sched.format import NONE, number, percent, records, span
from bayes_sched.reports import comparison as tables
from bayes_sched.reports.page import (
    PageTable,
    ReportFigure,
    ReportPaths,
    date,
    page_table,
    render,
    write_figures,
    write_json,
    write_tables,
)
from bayes_sched.reports.plots.comparison import (
    MAX_PAIRS,
    comparison_bands,
    parameter_forest,
    probability_map,
    ratio_map,
)
from bayes_sched.reports.terminal import WIDTH, text_table

_LABEL_WIDTH = 13


def comparison_text(comparison: Comparison) -> str:
    """Return the paragraph and the tables."""
    paragraph = textwrap.fill(" ".join(comparison.sentences), WIDTH, break_on_hyphens=False)
    parts = [
        paragraph,
        _share_text(comparison),
        _steps(comparison),
        _throughput(comparison),
        _parameters(comparison),
        textwrap.fill(comparison.rule, WIDTH, initial_indent="  ", subsequent_indent="  "),
    ]
    return "\n\n".join(filter(None, parts))


def _pair(gpu: str, other: str) -> str:
    return f"{_label(gpu)} / {_label(other)}"


def _label(label: str) -> str:
    """Shorten at the beginning: names of results differ at their ends."""
    return label if len(label) <= _LABEL_WIDTH else f"…{label[2 - _LABEL_WIDTH :]}"


def _share_text(comparison: Comparison) -> str:
    words = ("faster", "slower", "equivalent", "undecided")
    rows = [
        [
            _pair(row["gpu"], row["other"]),
            row["of"],
            f"{row['num_steps']:,}",
            *(percent(row[word]) for word in words),
        ]
        for row in records(comparison.shares)
    ]
    return text_table(["verdicts", "of the", "steps", *words], rows, right={"steps", *words})


def _steps(comparison: Comparison) -> str:
    """Return a table a pair, headed by the names of the two."""
    titles = ["mean (ms)", "B", "S", "first", "second", "ratio", "P(faster)", "verdict"]
    parts = []
    for (gpu, other), group in comparison.steps.groupby(["gpu", "other"], sort=False):
        rows = [
            [
                row["step"],
                f"{row['batch_size']:,}",
                f"{row['total_tokens']:,}",
                number(row["gpu_ms"]),
                number(row["other_ms"]),
                ratio_text(row),
                _compact(certainty(row["p_faster"])),
                row["verdict"],
            ]
            for row in records(group)
        ]
        table = text_table(titles, rows, right={"B", "S", "first", "second"})
        parts.append(f"  {gpu} (first) / {other} (second)\n{table}")
    return "\n\n".join(parts)


def _throughput(comparison: Comparison) -> str:
    rows: list[list[str]] = []
    has_cost = bool(comparison.throughput["cost"].notna().any())
    for row in records(comparison.throughput):
        if not rows or row["case"] not in [cells[0] for cells in rows if cells]:
            rows += [[row["case"], *[""] * (4 if has_cost else 2)]]
        cells = [
            f"  {_label(row['gpu'])}",
            number(row["tokens_per_s"]),
            span(row["tokens_per_s_lower"], row["tokens_per_s_upper"]),
        ]
        if has_cost:
            cost_span = NONE if row["cost"] is None else span(row["cost_lower"], row["cost_upper"])
            cells += [number(row["cost"]), cost_span]
        rows.append(cells)
    interval = f"{percent(comparison.probability)} interval"
    titles = ["throughput", "tokens/s", interval]
    titles += ["cost/million", f"its {interval}"] if has_cost else []
    return text_table(titles, rows, right={"tokens/s", "cost/million"}) if rows else ""


def _parameters(comparison: Comparison) -> str:
    titles = ["parameter", "ratio of", "ratio", "verdict"]
    chosen = comparison.parameter_ratios[comparison.parameter_ratios["kind"] != "noise"]
    rows = [
        [
            row["name"],
            _pair(row["gpu"], row["other"]),
            f"{_short(row['ratio_median'])} ({_short(row['ratio_lower'])} to {_short(row['ratio_upper'])})",
            row["verdict"] if row["identified"] else "none: not identified",
        ]
        for row in records(chosen)
    ]
    return text_table(titles, rows, right=set())


def _compact(text: str) -> str:
    return text.replace("above ", "> ").replace("below ", "< ")


def _short(value: float) -> str:
    return f"{value:.3g}"


NONE_DECIDES = "hardly any"


def fit_page(comparison: Comparison) -> PageTable:
    """Return the table of the fits; those that have not converged are marked."""
    rows = [
        {
            "label": member.label,
            "result": member.fit.metadata.name,
            "GPU": member.fit.metadata.labels.get("gpu", NONE),
            "LLM": member.fit.metadata.labels.get("llm", NONE),
            "steps": member.fit.metadata.rows.used,
            "equation off by": NONE if (off := misfit_of(member.fit)) is None else f"< {percent(off, 1)}",
            "price an hour": number(member.price_per_hour),
            "converged": "yes" if member.fit.converged else "NO",
        }
        for member in comparison.members
    ]
    return page_table(rows, failed=[not member.fit.converged for member in comparison.members])


def difference_page(comparison: Comparison) -> PageTable:
    """Return the table of what differs."""
    return page_table(
        [
            {"what": row["what"], **{label: str(row[label]) for label in comparison.labels}}
            for row in records(comparison.differences)
        ]
    )


def share_page(comparison: Comparison) -> PageTable:
    """Return how often each verdict is given."""
    return page_table(
        [
            {
                "server": row["gpu"],
                "against": row["other"],
                "of the": row["of"],
                "distinct": row["num_steps"],
                **{word: percent(row[word]) for word in ("faster", "slower", "equivalent", "undecided")},
                "ratio": span(row["ratio_smallest"], row["ratio_largest"]),
            }
            for row in records(comparison.shares)
        ]
    )


def step_page(comparison: Comparison) -> PageTable:
    """Return what typical steps take."""
    interval = f"ratio ({percent(comparison.probability)} interval)"
    return page_table(
        [
            {
                "step": row["step"],
                "B": row["batch_size"],
                "S": row["total_tokens"],
                "server": row["gpu"],
                "mean (ms)": row["gpu_ms"],
                "against": row["other"],
                "its mean (ms)": row["other_ms"],
                interval: ratio_text(row),
                "P(faster on average)": certainty(row["p_faster"]),
                "P(a step is faster)": certainty(row["p_step_faster"]),
                "verdict": row["verdict"],
            }
            for row in records(comparison.steps)
        ]
    )


def wanted_page(comparison: Comparison) -> PageTable:
    """Return which further data would decide."""
    return page_table(
        [
            {
                "server": row["gpu"],
                "against": row["other"],
                "B": row["batch_size"],
                "S": row["total_tokens"],
                "ratio": ratio_text(row),
                "measure on": row["measure"],
                "such steps so far": row["steps_seen"],
                "data that would decide": NONE_DECIDES
                if row["times_data"] is None
                else f"{number(row['times_data'], 2)} times",
            }
            for row in records(comparison.wanted)
        ]
    )


def equivalent_page(comparison: Comparison) -> PageTable:
    """Return the equivalents."""
    return page_table(
        [
            {
                "decodes": row["batch_size"],
                "on": row["gpu"],
                "cost what": _decodes(row["median"], row["limit"]),
                "on the server": row["other"],
                f"{percent(comparison.probability)} interval": f"{_decodes(row['lower'], row['limit'])} to "
                f"{_decodes(row['upper'], row['limit'])}",
                "extrapolation": "yes" if row["extrapolation"] else "no",
            }
            for row in records(comparison.equivalents)
        ]
    )


def _decodes(value: float | None, limit: float) -> str:
    if value is None:
        return f"> {limit:,.0f}"
    return "< 1" if value == 0 else number(value)


def throughput_page(comparison: Comparison) -> PageTable:
    """Return throughput and cost."""
    interval = f"{percent(comparison.probability)} interval"
    return page_table(
        [
            {
                "case": row["case"],
                "server": row["gpu"],
                "B": NONE if row["batch_size"] is None else f"{row['batch_size']:,.0f}",
                "S": NONE if row["total_tokens"] is None else f"{row['total_tokens']:,.0f}",
                "set by": row["set_by"],
                "tokens/s": number(row["tokens_per_s"]),
                interval: span(row["tokens_per_s_lower"], row["tokens_per_s_upper"], 4),
                "cost of a million": number(row["cost"]),
                f"its {interval}": NONE
                if row["cost"] is None
                else span(row["cost_lower"], row["cost_upper"], 4),
            }
            for row in records(comparison.throughput)
        ]
    )


def money_page(comparison: Comparison) -> PageTable:
    """Return how throughputs and costs compare."""
    return page_table(
        [
            {
                "case": row["case"],
                "quantity": row["quantity"],
                "server": row["gpu"],
                "against": row["other"],
                f"ratio ({percent(comparison.probability)} interval)": ratio_text(row),
                "P(better)": certainty(row["p_better"]),
                "verdict": row["verdict"],
            }
            for row in records(comparison.money)
        ]
    )


def parameter_page(comparison: Comparison) -> PageTable:
    """Return how the parameters compare."""
    medians = {(row["gpu"], row["name"]): number(row["median"]) for row in records(comparison.parameters)}
    return page_table(
        [
            {
                "name": row["name"],
                "unit": row["unit"],
                "server": row["gpu"],
                "median": medians[row["gpu"], row["name"]],
                "against": row["other"],
                "its median": medians[row["other"], row["name"]],
                "difference": f"{number(row['difference'])} "
                f"({span(row['difference_lower'], row['difference_upper'])})",
                "ratio": ratio_text(row),
                "P(greater)": certainty(row["p_greater"]) if row["identified"] else NONE,
                "verdict": row["verdict"],
            }
            for row in records(comparison.parameter_ratios)
        ]
    )


def file_tables(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """Return the tables that are written as files, with full precision."""
    return {
        "latency": comparison.table,
        "steps": comparison.steps,
        "shares": comparison.shares,
        "wanted_data": comparison.wanted,
        "equivalents": comparison.equivalents,
        "throughput": comparison.throughput,
        "throughput_and_cost_ratios": comparison.money,
        "parameters": comparison.parameters,
        "parameter_ratios": comparison.parameter_ratios,
        "differences": comparison.differences,
    }


def comparison_figures(comparison: Comparison) -> tuple[ReportFigure, ...]:
    """Return the figures in the order of the page; none is drawn yet.

    Parameters
    ----------
    comparison : Comparison
    """
    num_pairs = comparison.maps.sizes["pair"]
    rest = (
        f" The first {MAX_PAIRS} of {num_pairs} pairs; the tables hold all." if num_pairs > MAX_PAIRS else ""
    )
    return (
        ReportFigure(
            "ratio_map",
            "Which is faster where",
            "The ratio of the mean latencies: purple, the first server is faster; orange, slower; white, the "
            "ratio lies in the region of practical equivalence. Crosses are steps where the data leave it "
            "undecided; dots are steps of the traces, far from which the equation fills in; hatched "
            "parts are extrapolation for at least one server. A step cannot hold fewer "
            f"tokens than requests.{rest}",
            lambda: ratio_map(comparison),
        ),
        ReportFigure(
            "probability_map",
            "How sure that is",
            "Left, the probability that the first server is faster on average: what is known, which more "
            "data would sharpen. Right, that a single step on the first beats a single step on the second: "
            f"noise included, which no data take away.{rest}",
            lambda: probability_map(comparison),
        ),
        ReportFigure(
            "comparison_bands",
            "Latencies side by side",
            f"Lines are mean latencies, bands are where {percent(comparison.probability)} of single steps "
            "fall. A thin line without a band is extrapolation.",
            lambda: comparison_bands(comparison),
        ),
        ReportFigure(
            "parameter_forest",
            "Parameters, and combinations that data identify",
            "Filled marks are identified on both servers; right of the grey bar they are larger on the "
            "first. Hollow ones are not identified: they stand where the priors put them, and no verdict is "
            f"given. Logarithmic axis.{rest}",
            lambda: parameter_forest(comparison),
        ),
    )


def render_comparison(
    comparison: Comparison, figures: Mapping[ReportFigure, Path], *, command: str = ""
) -> str:
    """Return the page as one self-contained HTML document.

    Parameters
    ----------
    comparison : Comparison
    figures : mapping of ReportFigure to Path
        Each figure and its PNG file, in the order of the page.
    command : str
        What it was made by; may be empty.
    """
    values = {
        "comparison": comparison,
        "command": command,
        "version": VERSION,
        "made_at": date(datetime.now(UTC).isoformat()),
        "unconverged": [m.label for m in comparison.members if not m.fit.converged],
        "has_prices": any(m.price_per_hour is not None for m in comparison.members),
        "table_names": list(tables.file_tables(comparison)),
        "tables": {
            "fits": tables.fit_page(comparison),
            "differences": tables.difference_page(comparison),
            "shares": tables.share_page(comparison),
            "steps": tables.step_page(comparison),
            "wanted": tables.wanted_page(comparison),
            "equivalents": tables.equivalent_page(comparison),
            "throughput": tables.throughput_page(comparison),
            "money": tables.money_page(comparison),
            "parameters": tables.parameter_page(comparison),
        },
    }
    return render("comparison.html.j2", values, figures)


def write_comparison(
    comparison: Comparison, folder: str | Path, *, command: str = "", with_report: bool = True
) -> ReportPaths:
    """Write a comparison: numbers, tables and maps, and a page with figures.

    ``report.html`` needs no other file. Beside it lie ``summary.json``, ``tables/*.csv``, ``comparison.nc``
    (the maps, dims gpu, pair, batch_size, total_tokens) and ``figures/*.png`` and ``*.svg``.

    Parameters
    ----------
    comparison : Comparison
    folder : str or Path
        Made if it does not exist. Files of the same names are overwritten, others left alone.
    command : str
        What it was made by, to be shown on the page.
    with_report : bool
        Whether to make the page and the figures.

    Returns
    -------
    ReportPaths
    """
    folder = Path(folder)
    tables = write_tables(file_tables(comparison), folder / "tables")
    page, numbers = folder / "report.html", folder / "summary.json"
    write_json({**comparison.to_dict(), "command": command}, numbers)
    _maps(comparison).to_netcdf(folder / COMPARISON, engine="h5netcdf")
    if not with_report:
        return ReportPaths(page, numbers, tables, {})
    figures = write_figures(comparison_figures(comparison), folder / "figures")
    shown = {figure: png for figure, (png, _) in figures.items()}
    page.write_text(render_comparison(comparison, shown, command=command), encoding="utf-8")
    return ReportPaths(page, numbers, tables, {figure.name: paths for figure, paths in figures.items()})


def _maps(comparison: Comparison) -> xr.Dataset:
    """Return the maps and the grid with texts in a form that netCDF knows, and what they mean."""
    maps = comparison.maps.merge(comparison.grid)
    texts = {name: variable for name, variable in maps.variables.items() if variable.dtype.kind in "OUT"}
    plain = maps.assign_coords(
        {n: (v.dims, v.to_numpy().astype(object)) for n, v in texts.items() if n in maps.coords}
    ).assign({n: (v.dims, v.to_numpy().astype(object)) for n, v in texts.items() if n in maps.data_vars})
    return plain.assign_attrs(
        {"rope": comparison.rope, "probability": comparison.probability, "rule": comparison.rule}
    )
