"""The plain-language paragraph on top of a report, and the warnings under it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from bayes_sched.fitted import FittedModel
from bayes_sched.numbers import listed, number, percent, span
from bayes_sched.parameter_table import PARTLY, WEAKLY
from bayes_sched.plots.calibration import Calibration
from bayes_sched.records import records
from bayes_sched.report.typical import FULL_PREFILL, LARGEST_DECODE, MEDIAN_DECODE, PER_REQUEST, PER_TOKEN

MAX_MISCOVERAGE = 0.03
"""A 90% band that holds between 87% and 93% of the observed steps counts as right."""
MAX_KIND_MISCOVERAGE = 0.07
"""The same for one kind of step, such as decode-only ones."""
_MIN_KIND_STEPS = 100


def paragraph(
    fit: FittedModel,
    table: pd.DataFrame,
    costs: pd.DataFrame,
    parameters: pd.DataFrame,
    calibration: Calibration,
    *,
    probability: float,
) -> tuple[str, ...]:
    """Return the sentences that a busy person can act on.

    Parameters
    ----------
    fit : FittedModel
    table, costs : DataFrame
        Of :mod:`bayes_sched.report.typical`.
    parameters : DataFrame
        :meth:`FittedModel.parameter_table`.
    calibration : Calibration
    probability : float
        Of every interval.

    Returns
    -------
    tuple of str
    """
    return (
        _measured(fit),
        _trust(fit, calibration, probability),
        *_steps(table, probability),
        *_costs(costs, probability),
        _open(parameters),
        _covered(fit),
    )


def notes(fit: FittedModel, table: pd.DataFrame, calibration: Calibration) -> tuple[str, ...]:
    """Return what to beware of, each a sentence: cleaning, rows left out, extrapolation, miscalibration.

    Parameters
    ----------
    fit : FittedModel
    table : DataFrame
        Of :func:`bayes_sched.report.typical.step_table`.
    calibration : Calibration

    Returns
    -------
    tuple of str
        Empty if all is well.
    """
    rows = fit.metadata.rows
    found = list(fit.warnings)
    if rows.used < rows.cleaned and not any(f"{rows.used:,}" in text for text in found):
        found.append(f"{rows.used:,} of {rows.cleaned:,} cleaned steps were used for the fit (--max-rows)")
    found += [
        f"the {row['step']} (B = {row['batch_size']:,}, S = {row['total_tokens']:,}) is an extrapolation"
        for row in records(table[table["extrapolation"]])
    ]
    return (*found, *_miscovered(calibration))


def _miscovered(calibration: Calibration) -> list[str]:
    """Return a sentence for each kind of step for which the 90% band is clearly wrong."""
    table = calibration.coverage
    kinds = table[(table["probability"] == 0.9) & (table["num_steps"] >= _MIN_KIND_STEPS)].iloc[1:]
    wrong = kinds[(kinds["coverage"] - 0.9).abs() > MAX_KIND_MISCOVERAGE]
    return [
        f"of the {row['num_steps']:,} {row['steps']} steps {percent(row['coverage'])} lie in their 90% band: "
        f"it is too {'narrow' if row['coverage'] < 0.9 else 'wide'} for them"
        for row in records(wrong)
    ]


def _measured(fit: FittedModel) -> str:
    metadata = fit.metadata
    rows = metadata.rows
    what = f"{rows.used:,} scheduler steps"
    if llm := metadata.labels.get("llm"):
        what += f" of {llm}"
    if gpu := metadata.labels.get("gpu"):
        what += f" on {gpu}"
    kept = "" if rows.used == rows.read else f", out of {rows.read:,} read"
    prior = f" Its prior is from {metadata.prior_from}." if metadata.prior_from else ""
    return f"Measured: {what}{kept} (result {metadata.name}).{prior}"


def _trust(fit: FittedModel, calibration: Calibration, probability: float) -> str:
    share = calibration.coverage_of(probability)
    held = f"{percent(share, 1)} of the observed steps lie in their {percent(probability)} band"
    if not fit.converged:
        problem = fit.metadata.problems[0] if fit.metadata.problems else "see the convergence table"
        return f"The fit has NOT CONVERGED: {problem}. Do not act on the numbers below until it has; {held}."
    if abs(share - probability) > MAX_MISCOVERAGE:
        side = "narrow" if share < probability else "wide"
        return f"The fit converged, but its bands are too {side}: {held}; take them as approximate."
    if _miscovered(calibration):
        return f"The fit converged and its bands hold on the whole, but not for every kind of step: {held}."
    return f"The fit converged and its bands hold: {held}."


def _steps(table: pd.DataFrame, probability: float) -> list[str]:
    rows = {row["step"]: row for row in records(table)}
    sentences = []
    if (row := rows.get(MEDIAN_DECODE)) is not None:
        band = _band(row, probability, words=" of such steps take")
        text = f"A decode step of {_requests(row)} (the median) takes {band}"
        if (largest := rows.get(LARGEST_DECODE)) is not None:
            text += f"; one of {largest['batch_size']:,}, the most seen, {_band(largest, probability)}"
        sentences.append(f"{text}.")
    if (row := rows.get(FULL_PREFILL)) is not None:
        sentences.append(
            f"A full prefill step ({row['total_tokens']:,} tokens, {_requests(row)}) takes "
            f"{_band(row, probability)}, and 1 in 100 takes longer than {number(row['q99_ms'])} ms."
        )
    if not sentences:
        row = records(table)[0]
        sentences.append(
            f"The {row['step']} ({row['total_tokens']:,} tokens) takes {_band(row, probability)}."
        )
    return sentences


def _band(row: Mapping[str, Any], probability: float, *, words: str = ":") -> str:
    interval = span(row["lower_ms"], row["upper_ms"])
    return f"{number(row['median_ms'])} ms ({percent(probability)}{words} {interval} ms)"


def _requests(row: Mapping[str, Any]) -> str:
    return f"{row['batch_size']:,} request{'' if row['batch_size'] == 1 else 's'}"


def _costs(costs: pd.DataFrame, probability: float) -> list[str]:
    rows = {row["cost"]: row for row in records(costs)}
    parts = []
    if (row := rows.get(PER_REQUEST)) is not None:
        parts.append(f"one more decoding request adds {number(row['median'])} ms ({_interval(row, 1.0)})")
    if (row := rows.get(PER_TOKEN)) is not None:
        parts.append(
            f"100 more prefill tokens add {number(100.0 * row['median'])} ms ({_interval(row, 100.0)})"
        )
    if not parts:
        return []
    text = f"On average, {' and '.join(parts)}; {percent(probability)} credible intervals in brackets."
    return [text]


def _interval(row: Mapping[str, Any], factor: float) -> str:
    return span(factor * row["lower"], factor * row["upper"])


def _open(parameters: pd.DataFrame) -> str:
    documented = parameters[parameters["kind"] == "parameter"]
    nothing = documented.loc[documented["contraction"] < WEAKLY, "name"].tolist()
    little = documented.loc[
        documented["contraction"].between(WEAKLY, PARTLY, inclusive="left"), "name"
    ].tolist()
    parts = []
    if nothing:
        parts.append(f"{listed(nothing)} stay as wide as their priors")
    if little:
        parts.append(f"{listed(little)} {'is' if len(little) == 1 else 'are'} only weakly identified")
    if not parts:
        return "The data identify every parameter of the equation at least partly."
    return (
        f"The data leave open single parameters ({'; '.join(parts)}): compare servers by latencies and by "
        "the identified combinations, not by these."
    )


def _covered(fit: FittedModel) -> str:
    cells = fit.cells
    return (
        f"The trace covers steps of up to {int(cells['batch_size'].max()):,} requests and "
        f"{int(cells['total_tokens'].max()):,} tokens; what lies outside is extrapolation and marked so."
    )
