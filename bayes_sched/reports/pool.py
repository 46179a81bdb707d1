"""Writes a pool into a folder: its population, its fits, and the report."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bayes_sched.files import MEMBERS, POPULATION, POSTERIOR, VERSION
from bayes_sched.format import listed, number, percent, records, span
from bayes_sched.pooling.hierarchy import BETWEEN, WITHIN
from bayes_sched.pooling.pool import Pool, change_table, spread_table
from bayes_sched.pooling.population import UNSEEN, Population
from bayes_sched.pooling.prior import SUMS
from bayes_sched.posterior.fitted import DEFAULT_PROBABILITY, FittedModel
from bayes_sched.posterior.parameters import PARTLY
from bayes_sched.reports import pool as tables
from bayes_sched.reports.fit import FULL_PREFILL, MEDIAN_DECODE, TypicalStep, band_table, typical_steps
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
from bayes_sched.reports.plots.pool import pool_latency, pool_shrinkage
from bayes_sched.reports.terminal import WIDTH, cut, text_table
from bayes_sched.steps import steps_arrays

_NAME_WIDTH = 30


def pool_text(found: PoolSummary) -> str:
    """Return the paragraph and the tables.

    Parameters
    ----------
    found : PoolSummary
    """
    paragraph = textwrap.fill(" ".join(found.sentences), WIDTH, break_on_hyphens=False)
    gate = textwrap.fill(
        f"{found.population.convergence.text} {_work(found)}",
        WIDTH,
        initial_indent="  ",
        subsequent_indent="  ",
    )
    return "\n\n".join([paragraph, _spread(found), _members(found), _changes(found), gate])


def _spread(found: PoolSummary) -> str:
    share = percent(found.probability)
    titles = ["factor", "unit", "from server to server", "from trace to trace", f"unseen server, {share}"]
    rows = [
        [
            row["coordinate"],
            "" if row["unit"] == "1" else row["unit"],
            factor_text(row, "between"),
            factor_text(row, "within"),
            span(row["unseen_lower"], row["unseen_upper"]),
        ]
        for row in records(found.spread)
    ]
    return text_table(titles, rows, right=set())


def _members(found: PoolSummary) -> str:
    titles = ["trace", "server", "steps", "effective draws"]
    rows = [
        [
            _end(row["trace"]),
            cut(row["server"], _NAME_WIDTH),
            f"{row['steps']:,}",
            f"{row['effective_draws']:,.0f}",
        ]
        for row in records(found.members)
    ]
    return text_table(titles, rows, right={"steps", "effective draws"})


def _changes(found: PoolSummary) -> str:
    """Return the intervals alone and pooled of what is in every model: sums and latency per request."""
    titles = ["", "trace", "alone", "pooled", "width"]
    rows: list[list[str]] = []
    chosen = found.changes[found.changes["coordinate"].isin(SPOKEN)]
    for name, group in chosen.groupby("coordinate", sort=False):
        rows += [[]] if rows else []
        rows += [
            [
                str(name) if number_of == 0 else "",
                _end(row["trace"]),
                span(row["alone_lower"], row["alone_upper"], 4),
                span(row["pooled_lower"], row["pooled_upper"], 4),
                f"{row['width_ratio']:.2f}",
            ]
            for number_of, row in enumerate(records(group))
        ]
    return text_table(titles, rows, right={"width"})


def _work(found: PoolSummary) -> str:
    gate = found.gate
    parts = [f"{gate['num_gradients']:,} gradients"]
    if gate["ess_per_1000_gradients"] is not None:
        parts.append(f"{number(gate['ess_per_1000_gradients'])} effective draws per 1,000 of them")
    if found.seconds is not None:
        parts.append(f"{found.seconds:.0f} s")
    return f"Population: {', '.join(parts)}."


def _end(name: str) -> str:
    """Shorten at the beginning: names of traces differ at their ends."""
    return name if len(name) <= _NAME_WIDTH else f"…{name[1 - _NAME_WIDTH :]}"


_SHORT = {"L_8": "floor", "c": "slope", "tau_B": "latency per request"}
SPOKEN = (*SUMS, "tau_B")
"""The coordinates that every model has; the others, such as those of the noise, are left to the tables."""
_AS_PERCENT = 1.5
_NOTABLE = 0.05


def paragraph(
    pool: Pool,
    spread: pd.DataFrame,
    changes: pd.DataFrame,
    members: pd.DataFrame,
    steps: pd.DataFrame,
    *,
    probability: float,
) -> tuple[str, ...]:
    """Return the sentences that a busy person can act on.

    Parameters
    ----------
    pool : Pool
    spread, changes : DataFrame
        Of :mod:`bayes_sched.pooling.spread`.
    members, steps : DataFrame
        Of :class:`~bayes_sched.reports.pool_summary.PoolSummary`.
    probability : float
        Of every interval.

    Returns
    -------
    tuple of str
    """
    return (
        _pooled(pool),
        _trust(pool, members),
        *_alike(pool, spread, probability),
        _changed(changes, probability),
        *_expected(steps, probability),
    )


def notes(pool: Pool, spread: pd.DataFrame) -> tuple[str, ...]:
    """Return what to beware of, each a sentence.

    Parameters
    ----------
    pool : Pool
    spread : DataFrame
        Of :func:`bayes_sched.pooling.spread.spread_table`.
    """
    found = [f"{name} has NOT CONVERGED by itself" for name, fit in pool.alone.items() if not fit.converged]
    for key, of in (("between", "servers"), ("within", "traces of one server")):
        if spread[f"{key}_contraction"].min() < PARTLY:
            open_names = spread.loc[spread[f"{key}_contraction"] < PARTLY, "coordinate"].tolist()
            count = _count(len(pool.population.servers), "server")
            found.append(
                f"{count} and {_count(len(pool.alone), 'trace')} tell little of how far {of} differ in "
                f"{listed(open_names)}: that is mostly what the prior of the population says"
            )
    found.append(
        "pooled fits share their population, so they are not quite independent, as comparisons of fits take "
        "them to be"
    )
    return tuple(found)


def difference_text(row: Mapping[str, Any], key: str) -> str:
    """Write a standard deviation of a logarithm with its interval: in percent, or a factor if it is large."""
    if math.exp(row[f"{key}_upper"]) >= _AS_PERCENT:
        return f"a factor of {factor_text(row, key)}"
    middle, low, high = (percent(math.exp(row[name]) - 1.0) for name in (key, f"{key}_lower", f"{key}_upper"))
    return f"{middle} ({low} to {high})"


def factor_text(row: Mapping[str, Any], key: str) -> str:
    """Write a standard deviation of a logarithm as a factor, with its interval."""
    middle, low, high = (math.exp(row[name]) for name in (key, f"{key}_lower", f"{key}_upper"))
    return f"{number(middle)} ({span(low, high)})"


def coordinate_words(name: str) -> str:
    """Return a coordinate's name, with what it is where that is short."""
    return f"{_SHORT[name]} {name}" if name in _SHORT else name


def _pooled(pool: Pool) -> str:
    population = pool.population
    servers = list(population.server_of_trace.values())
    parts = [f"{server} ({_count(servers.count(server), 'trace')})" for server in population.servers]
    return (
        f"Pooled: {_count(len(servers), 'trace')} of {_count(len(parts), 'server')}, {listed(parts)}; model "
        f"{population.model}, {population.noise} noise (result {population.name})."
    )


def _trust(pool: Pool, members: pd.DataFrame) -> str:
    if not pool.converged:
        return (
            f"The pool has NOT CONVERGED: {pool.population.problems[0]}. Do not act on the numbers below "
            "until it has."
        )
    few, many = members["effective_draws"].min(), members["effective_draws"].max()
    return (
        f"The pool converged; each pooled fit rests on {few:,.0f} to {many:,.0f} effective draws of its own."
    )


def _alike(pool: Pool, spread: pd.DataFrame, probability: float) -> list[str]:
    rows = [row for row in records(spread) if row["coordinate"] in SPOKEN]
    interval = f"one standard deviation, {percent(probability)} interval in brackets"
    servers = list(pool.population.server_of_trace.values())
    found = [f"Servers differ by {_differences(rows, 'between')} ({interval})."]
    if len(set(servers)) < len(servers):
        found.insert(0, f"Traces of one server differ by {_differences(rows, 'within')} ({interval}).")
        found[1] = f"Servers differ by {_differences(rows, 'between')}."
    return found


def _differences(rows: list[dict[str, Any]], key: str) -> str:
    return listed(
        [f"{difference_text(row, key)} in the {coordinate_words(row['coordinate'])}" for row in rows]
    )


def _changed(changes: pd.DataFrame, probability: float) -> str:
    size = (1.0 - changes["width_ratio"]).abs().combine(changes["shift"].abs(), max)
    row = records(changes.loc[[size.idxmax()]])[0]
    if size.max() < _NOTABLE:
        return "Pooling changed no interval by more than 5%: each trace says enough by itself."
    unit = "" if row["unit"] == "1" else f" {row['unit']}"
    return (
        f"Pooling changed most what is known of the {coordinate_words(row['coordinate'])} of {row['trace']}: "
        f"{span(row['alone_lower'], row['alone_upper'])}{unit} by itself, "
        f"{span(row['pooled_lower'], row['pooled_upper'])} pooled ({percent(probability)} intervals)."
    )


def _expected(steps: pd.DataFrame, probability: float) -> list[str]:
    rows = {row["step"]: row for row in records(steps[steps["trace"] == UNSEEN])}
    parts = [
        f"{words} {_step(row)} {_mean(row)}"
        for name, words in ((MEDIAN_DECODE, "a decode step of"), (FULL_PREFILL, "a full prefill step of"))
        if (row := rows.get(name)) is not None
    ]
    if not parts:
        return []
    return [
        f"On a server not yet seen, {listed(parts)} on average ({percent(probability)} interval in brackets: "
        "how far servers differ)."
    ]


def _step(row: Mapping[str, Any]) -> str:
    requests = _count(row["batch_size"], "request")
    return (
        requests
        if row["batch_size"] == row["total_tokens"]
        else f"{row['total_tokens']:,} tokens ({requests})"
    )


def _mean(row: Mapping[str, Any]) -> str:
    interval = span(row["mean_lower_ms"], row["mean_upper_ms"])
    return f"is expected to take {number(row['mean_median_ms'])} ms ({interval})"


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


SUMMARY_VERSION = 1
"""Raised when a field of :meth:`PoolSummary.to_dict` changes its meaning or goes."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PoolSummary:
    """What a pool says, in numbers and in words.

    Attributes
    ----------
    population : Population
    probability : float
        Of every interval.
    spread : DataFrame
        How alike servers are; columns of :func:`bayes_sched.pooling.spread.spread_table`.
    changes : DataFrame
        What pooling did to each trace; columns of :func:`bayes_sched.pooling.spread.change_table`.
    members : DataFrame
        One row a trace: ``trace``, ``server``, ``steps`` (used), ``draws``, ``effective_draws``,
        ``converged`` (of the fit alone).
    steps : DataFrame
        What typical steps take on each trace's server and on one not yet seen: ``step``, ``batch_size``,
        ``total_tokens``, ``trace``, and the columns of :func:`bayes_sched.reports.typical.band_table`.
    gate : dict
        ``num_divergences``, ``e_bfmi`` (a list, one a chain), ``num_draws``, ``num_gradients``,
        ``worst_r_hat``, ``worst_ess``, ``ess_per_1000_gradients`` of the population.
    seconds : float or None
        Wall time of pooling, the fits of the traces apart.
    sentences : tuple of str
        The plain-language paragraph.
    notes : tuple of str
        What to beware of.
    """

    population: Population
    probability: float
    spread: pd.DataFrame
    changes: pd.DataFrame
    members: pd.DataFrame
    steps: pd.DataFrame
    gate: dict[str, Any]
    seconds: float | None
    sentences: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def converged(self) -> bool:
        """Whether the gate passed."""
        return self.population.converged

    @property
    def problems(self) -> tuple[str, ...]:
        """What the gate found."""
        return self.population.problems

    @property
    def text(self) -> str:
        """The paragraph, and one line for each warning after it."""
        return "\n".join([" ".join(self.sentences), *(f"Warning: {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values, ready for JSON; a missing number is None.

        Keys: ``summary_version``; ``name``, ``model``, ``noise``, ``command``, ``created_at``,
        ``server_of_trace`` of the population; ``probability``, ``converged``, ``problems``, ``text``,
        ``warnings``; ``spread``, ``changes``, ``members``, ``typical_steps``: lists with one mapping a row of
        the tables above; ``gate``; ``pooling_seconds``.
        """
        population = self.population
        return {
            "summary_version": SUMMARY_VERSION,
            "name": population.name,
            "model": population.model,
            "noise": population.noise,
            "command": population.command,
            "created_at": population.created_at,
            "server_of_trace": dict(population.server_of_trace),
            "probability": self.probability,
            "converged": self.converged,
            "problems": list(self.problems),
            "text": " ".join(self.sentences),
            "warnings": list(self.notes),
            "spread": records(self.spread),
            "changes": records(self.changes),
            "members": records(self.members),
            "typical_steps": records(self.steps),
            "gate": self.gate,
            "pooling_seconds": self.seconds,
        }


def pool_summary(
    pool: Pool, *, probability: float = DEFAULT_PROBABILITY, seconds: float | None = None
) -> PoolSummary:
    """Say what pooling found.

    Parameters
    ----------
    pool : Pool
    probability : float
        Of every interval, between 0 and 1.
    seconds : float, optional
        Wall time that pooling took.
    """
    spread = spread_table(pool, probability=probability)
    changes = change_table(pool, probability=probability)
    members = _member_table(pool)
    steps = _step_table(pool, probability)
    return PoolSummary(
        population=pool.population,
        probability=probability,
        spread=spread,
        changes=changes,
        members=members,
        steps=steps,
        gate=_gate(pool.population),
        seconds=None if seconds is None else round(seconds, 1),
        sentences=paragraph(pool, spread, changes, members, steps, probability=probability),
        notes=notes(pool, spread),
    )


def fits_by_name(pool: Pool) -> dict[str, FittedModel]:
    """Return the pooled fits and that of the server not yet seen, which comes last."""
    return {**pool.pooled, UNSEEN: pool.unseen}


def _member_table(pool: Pool) -> pd.DataFrame:
    population = pool.population
    return pd.DataFrame(
        [
            {
                "trace": name,
                "server": population.server_of_trace[name],
                "steps": fit.metadata.rows.used,
                "draws": fit.posterior.sizes["chain"] * fit.posterior.sizes["draw"],
                "effective_draws": float(population.effective_draws[name]),
                "converged": fit.converged,
            }
            for name, fit in pool.alone.items()
        ]
    )


def _step_table(pool: Pool, probability: float) -> pd.DataFrame:
    """Return what typical steps of all traces together take on each server, with typical context."""
    typical = _typical(pool)
    names = pd.DataFrame(
        [(step.name, step.batch_size, step.total_tokens) for step in typical],
        columns=["step", "batch_size", "total_tokens"],
    )
    completing = next(iter(pool.alone.values()))
    points = completing.completed(steps_arrays(names["batch_size"], names["total_tokens"]))
    tables = [
        names.assign(trace=name).join(band_table(fit, points, probability=probability).reset_index(drop=True))
        for name, fit in fits_by_name(pool).items()
    ]
    return pd.concat(tables, ignore_index=True)


def _typical(pool: Pool) -> tuple[TypicalStep, ...]:
    cells = pool.unseen.cells.to_dataframe()
    every = cells.loc[cells.index.repeat(cells["count"].to_numpy()), ["batch_size", "total_tokens"]]
    return typical_steps(every.reset_index(drop=True))


def _gate(population: Population) -> dict[str, Any]:
    found = population.convergence
    return {
        "num_divergences": found.num_divergences,
        "e_bfmi": [float(value) for value in found.e_bfmi],
        "num_draws": found.num_draws,
        "num_gradients": found.num_gradients,
        "worst_r_hat": found.worst_r_hat,
        "worst_ess": found.worst_ess,
        "ess_per_1000_gradients": found.ess_per_1000_gradients if found.num_gradients else None,
    }


NOT_SEEN = "a server not yet seen"


def spread_page(found: PoolSummary) -> PageTable:
    """Return how alike servers are, coordinate by coordinate."""
    share = percent(found.probability)
    return page_table(
        [
            {
                "coordinate": coordinate_words(row["coordinate"]),
                "unit": row["unit"],
                f"mean server ({share} interval)": _value(row, "mean"),
                "from server to server, factor": factor_text(row, "between"),
                "its contraction": f"{row['between_contraction']:.2f}",
                "from trace to trace, factor": factor_text(row, "within"),
                "contraction": f"{row['within_contraction']:.2f}",
                f"{NOT_SEEN} ({share})": _value(row, "unseen"),
            }
            for row in records(found.spread)
        ]
    )


def member_page(found: PoolSummary) -> PageTable:
    """Return the pooled traces; those that have not converged by themselves are marked."""
    return page_table(
        [
            {
                "trace": row["trace"],
                "server": row["server"],
                "steps": row["steps"],
                "draws": row["draws"],
                "effective draws, pooled": round(row["effective_draws"]),
                "converged alone": "yes" if row["converged"] else "NO",
            }
            for row in records(found.members)
        ],
        failed=[not converged for converged in found.members["converged"]],
    )


def change_page(found: PoolSummary) -> PageTable:
    """Return what pooling did to each trace, ordered by coordinate."""
    share = percent(found.probability)
    order = found.spread["coordinate"].tolist()
    ordered = found.changes.sort_values("coordinate", key=lambda names: names.map(order.index), kind="stable")
    return page_table(
        [
            {
                "coordinate": row["coordinate"],
                "unit": row["unit"],
                "trace": row["trace"],
                f"alone ({share} interval)": _value(row, "alone"),
                f"pooled ({share} interval)": _value(row, "pooled"),
                "width, pooled over alone": f"{row['width_ratio']:.2f}",
            }
            for row in records(ordered)
        ]
    )


def step_page(found: PoolSummary) -> PageTable:
    """Return what typical steps take on each server."""
    share = percent(found.probability)
    return page_table(
        [
            {
                "step": row["step"],
                "B": row["batch_size"],
                "S": row["total_tokens"],
                "server of": NOT_SEEN if row["trace"] == UNSEEN else row["trace"],
                "mean (ms)": number(row["mean_median_ms"]),
                f"mean, {share} credible (ms)": span(row["mean_lower_ms"], row["mean_upper_ms"]),
                f"{share} of steps (ms)": span(row["lower_ms"], row["upper_ms"]),
                "extrapolation": "yes" if row["extrapolation"] else "no",
            }
            for row in records(found.steps.sort_values(["batch_size", "total_tokens"], kind="stable"))
        ]
    )


def file_tables(found: PoolSummary) -> dict[str, pd.DataFrame]:
    """Return the tables that are written as files, with full precision."""
    return {
        "spread": found.spread,
        "alone_and_pooled": found.changes,
        "members": found.members,
        "typical_steps": found.steps,
        "convergence": found.population.convergence.table.rename_axis("variable").reset_index(),
    }


def _value(row: Mapping[str, Any], key: str) -> str:
    return f"{number(row[key])} ({span(row[f'{key}_lower'], row[f'{key}_upper'])})"


def pool_figures(pool: Pool, found: PoolSummary) -> tuple[ReportFigure, ...]:
    """Return the figures in the order of the page; none is drawn yet.

    Parameters
    ----------
    pool : Pool
    found : PoolSummary
    """
    share = percent(found.probability)
    context = next(iter(pool.alone.values())).typical.text(pool.unseen.model.columns)
    return (
        ReportFigure(
            "pool_shrinkage",
            "What each trace says alone, and with the others",
            f"One panel a quantity that data identify, logarithmic. Grey, the {share} interval of a trace by "
            "itself; blue, with the strength of the others. Where a trace says enough, the two are alike. "
            f"The green band is where a server not yet seen is expected with {share} probability.",
            lambda: pool_shrinkage(found.changes, found.spread, probability=found.probability),
        ),
        ReportFigure(
            "pool_latency",
            "What a server not yet seen is expected to do",
            "Lines are mean latencies of the pooled servers, thin where their traces hold no such steps. "
            f"The band holds the mean latency of a server not yet seen with {share} probability: how far "
            f"servers differ, and not what single steps do. Both axes are logarithmic. {context}".strip(),
            lambda: pool_latency(pool, probability=found.probability),
        ),
    )


def render_pool(found: PoolSummary, figures: Mapping[ReportFigure, Path]) -> str:
    """Return the page as one self-contained HTML document.

    Parameters
    ----------
    found : PoolSummary
    figures : mapping of ReportFigure to Path
        Each figure and its PNG file, in the order of the page.
    """
    values = {
        "found": found,
        "population": found.population,
        "gate": found.gate,
        "efficiency": number(found.gate["ess_per_1000_gradients"]),
        "priors": {"between": BETWEEN, "within": WITHIN},
        "version": VERSION,
        "made_at": date(found.population.created_at),
        "table_names": list(tables.file_tables(found)),
        "tables": {
            "spread": tables.spread_page(found),
            "members": tables.member_page(found),
            "changes": tables.change_page(found),
            "steps": tables.step_page(found),
        },
    }
    return render("pool.html.j2", values, figures)


def save_pool(pool: Pool, folder: str | Path) -> None:
    """Write ``population.nc`` and ``members/NAME/posterior.nc``, of the server not yet seen too.

    Parameters
    ----------
    pool : Pool
    folder : str or Path
        Made if it does not exist.

    Raises
    ------
    InputError
        The place cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pool.population.save(folder / POPULATION)
    for name, fit in fits_by_name(pool).items():
        place = folder / MEMBERS / name
        place.mkdir(parents=True, exist_ok=True)
        fit.save(place / POSTERIOR)


def write_pool(
    pool: Pool, found: PoolSummary, folder: str | Path, *, with_report: bool = True
) -> ReportPaths:
    """Write the report of a pool: numbers and tables, and a page with figures.

    ``report.html`` needs no other file. Beside it lie ``summary.json``, ``tables/*.csv`` and
    ``figures/*.png`` and ``*.svg``.

    Parameters
    ----------
    pool : Pool
    found : PoolSummary
        What :func:`~bayes_sched.reports.pool_summary.pool_summary` said of it.
    folder : str or Path
        Made if it does not exist. Files of the same names are overwritten, others left alone.
    with_report : bool
        Whether to make the page and the figures.

    Returns
    -------
    ReportPaths
    """
    folder = Path(folder)
    tables = write_tables(file_tables(found), folder / "tables")
    page, numbers = folder / "report.html", folder / "summary.json"
    write_json(found.to_dict(), numbers)
    if not with_report:
        return ReportPaths(page, numbers, tables, {})
    figures = write_figures(pool_figures(pool, found), folder / "figures")
    shown = {figure: png for figure, (png, _) in figures.items()}
    page.write_text(render_pool(found, shown), encoding="utf-8")
    return ReportPaths(page, numbers, tables, {figure.name: paths for figure, paths in figures.items()})
