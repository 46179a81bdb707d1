"""What a pool says, in sentences that a person can paste."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from bayes_sched.identified import SUMS
from bayes_sched.numbers import listed, number, percent, span
from bayes_sched.parameter_table import PARTLY
from bayes_sched.pooling import UNSEEN, Pool
from bayes_sched.records import records
from bayes_sched.report.typical import FULL_PREFILL, MEDIAN_DECODE

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
        Of :class:`~bayes_sched.report.pool_summary.PoolSummary`.
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
