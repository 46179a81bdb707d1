"""The frontier of (B, S): for each number of requests, the most tokens that may be promised."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bayes_sched.fitted import FittedModel
from bayes_sched.sla.evidence import evidence
from bayes_sched.sla.line import Line
from bayes_sched.sla.objective import Objective
from bayes_sched.sla.risk import step_risk
from bayes_sched.sla.search import point_allowed, promised
from bayes_sched.steps import steps_arrays

NUM_BATCH_SIZES = 24
"""Numbers of requests on the frontier, at most, evenly spread on a logarithmic scale."""

COLUMNS = (
    "batch_size",
    "first_tokens",
    "last_tokens",
    "total_tokens",
    "limited_by",
    "probability",
    "lower",
    "upper",
    "confidence",
    "extrapolation",
    "near_steps",
    "near_late",
    "is_contradicted",
    "point_tokens",
    "point_breach",
    "point_breach_lower",
    "point_breach_upper",
)


def frontier(
    fit: FittedModel,
    objective: Objective,
    *,
    extrapolate: bool,
    probability: float,
    max_draws: int | None,
) -> pd.DataFrame:
    """Return the most tokens that may be promised for some numbers of requests.

    Each row is a promise of its own: steps of exactly so many requests and of any number of tokens from
    ``first_tokens`` to ``total_tokens``.

    Returns
    -------
    DataFrame
        ``batch_size``; ``first_tokens``, ``last_tokens`` (what was searched: what the trace covers, unless
        told otherwise); ``total_tokens`` (NA where nothing may be promised); ``limited_by`` (``slo``,
        ``data`` or ``range``); ``probability``, ``lower``, ``upper``, ``confidence`` and ``extrapolation`` at
        the frontier, as in :func:`~bayes_sched.sla.risk.step_risk`; ``near_steps``, ``near_late`` and
        ``is_contradicted``, what the trace says, as in :class:`~bayes_sched.sla.evidence.Evidence`;
        ``point_tokens``, what a single
        fitted curve allows, and ``point_breach`` with its interval, the probability that a step there takes
        too long.
    """
    searched = spans(fit, extrapolate=extrapolate)
    if not searched:
        return pd.DataFrame(columns=list(COLUMNS))
    lines, ends = list(searched), list(searched.values())
    best = promised(fit, lines, ends, objective, max_draws=max_draws)
    point = point_allowed(fit, lines, ends, objective, max_draws=max_draws)
    table = pd.DataFrame(
        {
            "batch_size": [line.first for line in lines],
            "first_tokens": [first for first, _ in ends],
            "last_tokens": [last for _, last in ends],
            "total_tokens": pd.array(best, dtype="Int64"),
            "limited_by": [_limited(b, last, extrapolate) for b, (_, last) in zip(best, ends, strict=True)],
            "point_tokens": pd.array(point, dtype="Int64"),
        }
    )
    near = [
        None if b is None else evidence(fit, line, b, objective) for line, b in zip(lines, best, strict=True)
    ]
    table["near_steps"] = pd.Series([None if e is None else e.num_steps for e in near], dtype="Int64")
    table["near_late"] = pd.Series([None if e is None else e.late_share for e in near], dtype="Float64")
    flags = [None if e is None else e.is_contradicted for e in near]
    table["is_contradicted"] = pd.Series(flags, dtype="boolean")
    at_best = _risk(fit, table, "total_tokens", objective, probability, max_draws)
    at_point = _risk(fit, table, "point_tokens", objective, probability, max_draws)
    for name in ("probability", "lower", "upper", "confidence"):
        table[name] = at_best[name]
    table["extrapolation"] = at_best["extrapolation"].astype("boolean")
    table["point_breach"] = 1.0 - at_point["probability"]
    table["point_breach_lower"], table["point_breach_upper"] = (
        1.0 - at_point["upper"],
        1.0 - at_point["lower"],
    )
    return table[list(COLUMNS)]


def spans(fit: FittedModel, *, extrapolate: bool) -> dict[Line, tuple[int, int]]:
    """Return the lines of the frontier, each with the first and the last number of tokens to search."""
    highest = float(np.exp(fit.region.corners[:, 0].max())) * (2.0 if extrapolate else 1.0)
    sizes = np.unique(np.rint(np.geomspace(1.0, max(1.0, highest), NUM_BATCH_SIZES)).astype(int))
    found = {Line(int(b)): Line(int(b)).span(fit.region, extrapolate=extrapolate) for b in sizes}
    return {line: span for line, span in found.items() if span is not None}


def _limited(best: int | None, last: int, extrapolate: bool) -> str:
    if best != last:
        return "slo"
    return "range" if extrapolate else "data"


def _risk(
    fit: FittedModel,
    table: pd.DataFrame,
    column: str,
    objective: Objective,
    probability: float,
    max_draws: int | None,
) -> pd.DataFrame:
    """Return the risk at a column's tokens, one row a row of the table, NaN where there are none."""
    names = ["probability", "lower", "upper", "confidence", "extrapolation"]
    known = table[table[column].notna()]
    if known.empty:
        return pd.DataFrame(np.nan, index=table.index, columns=names)
    steps = steps_arrays(known["batch_size"].to_numpy(float), known[column].to_numpy(float))
    risk = step_risk(fit, steps, objective, probability=probability, max_draws=max_draws)
    found = pd.DataFrame({name: risk[name].to_numpy() for name in names}, index=known.index)
    return found.reindex(table.index)
