"""The tables of a fit's report: as files with full precision, and as a page shows them."""

from __future__ import annotations

import pandas as pd

from bayes_sched.fitted import FittedModel
from bayes_sched.numbers import NONE, percent, span
from bayes_sched.records import records
from bayes_sched.report.fit_summary import Summary
from bayes_sched.report.page_table import PageTable, page_table
from bayes_sched.report.typical import band_table
from bayes_sched.steps import steps_arrays


def _count(value: float | None) -> int | None:
    return None if value is None else round(value)


def _fixed(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def latency_grid(fit: FittedModel, steps: pd.DataFrame, *, probability: float) -> pd.DataFrame:
    """Return the bands over a grid of steps: powers of two and the largest seen.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame
        ``batch_size``, ``total_tokens``.
    probability : float

    Returns
    -------
    DataFrame
        ``batch_size``, ``total_tokens``, and the columns of :func:`bayes_sched.report.typical.band_table`.
    """
    batch_size, total_tokens = (_doubling(steps[name]) for name in ("batch_size", "total_tokens"))
    pairs = [(b, s) for b in batch_size for s in total_tokens if s >= b]
    grid = pd.DataFrame(pairs, columns=["batch_size", "total_tokens"])
    points = fit.completed(steps_arrays(grid["batch_size"], grid["total_tokens"]))
    return grid.join(band_table(fit, points, probability=probability))


def _doubling(values: pd.Series) -> list[int]:
    largest = int(values.max())
    return sorted({2**k for k in range(int(largest).bit_length())} | {largest})


def step_page(summary: Summary) -> PageTable:
    """Return the table of typical steps."""
    share = percent(summary.probability)
    return page_table(
        [
            {
                "step": row["step"],
                "B": row["batch_size"],
                "S": row["total_tokens"],
                "median (ms)": row["median_ms"],
                f"{share} of steps (ms)": span(row["lower_ms"], row["upper_ms"]),
                "99th percentile (ms)": row["q99_ms"],
                f"mean, {share} credible (ms)": span(row["mean_lower_ms"], row["mean_upper_ms"]),
                "extrapolation": "yes" if row["extrapolation"] else "no",
            }
            for row in records(summary.table)
        ]
    )


def cost_page(summary: Summary) -> PageTable:
    """Return the table of costs."""
    return page_table(
        [
            {
                "cost": row["cost"],
                "at": row["at"],
                "median": row["median"],
                f"{percent(summary.probability)} interval": span(row["lower"], row["upper"]),
                "unit": row["unit"],
            }
            for row in records(summary.costs)
        ]
    )


def parameter_page(summary: Summary, *, combinations: bool) -> PageTable:
    """Return the table of parameters, or that of the identified combinations."""
    table = summary.parameters
    chosen = table[(table["kind"] == "combination") == combinations]
    return page_table(
        [
            {
                "name": row["name"],
                "meaning": row["meaning"],
                "unit": row["unit"],
                "mean": row["mean"],
                "median": row["median"],
                f"{percent(summary.probability)} interval": span(row["lower"], row["upper"]),
                "ESS bulk": _count(row["ess_bulk"]),
                "ESS tail": _count(row["ess_tail"]),
                "R-hat": _fixed(row["r_hat"], 4),
                "contraction": _fixed(row["contraction"], 2),
                "verdict": row["verdict"],
            }
            for row in records(chosen)
        ]
    )


def effect_page(summary: Summary) -> PageTable:
    """Return the table of the effects' levels that have steps."""
    if summary.effects.empty:
        return page_table([])
    return page_table(
        [
            {
                "steps": str(row["meaning"]).removeprefix("log factors "),
                "level": row["level"],
                "number of steps": row["num_steps"],
                "factor": row["median"],
                f"{percent(summary.probability)} interval": span(row["lower"], row["upper"]),
            }
            for row in records(summary.effects[summary.effects["num_steps"] > 0])
        ]
    )


def convergence_page(summary: Summary) -> PageTable:
    """Return the convergence table; variables that fail the gate are marked.

    Of the levels of effects, which are many, only those that fail are shown.
    """
    table = summary.convergence
    names = set() if summary.effects.empty else set(summary.effects["effect"])
    is_level = table["variable"].str.partition("[")[0].isin(names)
    table = table[~is_level | ~table["passed"].astype(bool)]
    return page_table(
        [
            {
                "variable": row["variable"],
                "kind": row["kind"],
                "R-hat": _fixed(row["r_hat"], 4),
                "ESS bulk": _count(row["ess_bulk"]),
                "ESS tail": _count(row["ess_tail"]),
                "passed": "yes" if row["passed"] else "NO",
            }
            for row in records(table)
        ],
        failed=(~table["passed"].astype(bool)).tolist(),
    )


def cleaning_page(summary: Summary) -> PageTable:
    """Return the table of cleaning rules."""
    return page_table(
        [
            {
                "rule": str(row["rule"]),
                "steps removed": int(row["removed"] or 0),
                "share": percent(float(row["share"] or 0.0), 2),
            }
            for row in summary.metadata.cleaning.table
        ]
    )


def prior_page(summary: Summary) -> PageTable:
    """Return the table of priors."""
    title = "95% in" if summary.metadata.prior_from else "95% of a log-normal in"
    return page_table(
        [
            {
                "parameter": row["parameter"],
                title: span(row["low"], row["high"]),
                "median": row["median"],
                "unit": row["unit"],
            }
            for row in records(summary.priors)
        ]
    )
