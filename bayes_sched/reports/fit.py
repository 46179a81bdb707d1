"""Writes the report of a fit into a folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sched.checks.discrepancy import Discrepancy, estimate_discrepancy
from bayes_sched.errors import InputError
from bayes_sched.format import NONE, listed, number, percent, records, span
from bayes_sched.model.likelihood import effects_of
from bayes_sched.model.protocol import all_parameters
from bayes_sched.posterior.fitted import DEFAULT_PROBABILITY, FittedModel
from bayes_sched.posterior.parameters import PARTLY, WEAKLY, known_priors
from bayes_sched.posterior.provenance import FitMetadata
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
from bayes_sched.reports.plots.calibration import (
    Calibration,
    calibrate,
    posterior_predictive_check,
    residuals,
)
from bayes_sched.reports.plots.fit import (
    latency_by_batch,
    latency_by_tokens,
    latency_contours,
    prior_predictive,
)
from bayes_sched.reports.plots.posterior import (
    combination_pairs,
    effect_factors,
    effect_table,
    prior_posterior,
    ranks,
)
from bayes_sched.reports.plots.style import decode_only
from bayes_sched.steps import steps_arrays

MEDIAN_DECODE = "median decode step"
LARGEST_DECODE = "largest decode step"
FULL_PREFILL = "full prefill step"
SMALLEST = "smallest step"

PER_REQUEST = "one more decoding request"
PER_TOKEN = "one more prefill token"

_FULL_QUANTILE = 0.99
_FULL_NEIGHBOURHOOD = 0.95


@dataclass(frozen=True, slots=True)
class TypicalStep:
    """A step that stands for many: a name, requests and tokens."""

    name: str
    batch_size: int
    total_tokens: int


def typical_steps(steps: pd.DataFrame) -> tuple[TypicalStep, ...]:
    """Choose the steps that a person plans with, from those that a trace holds.

    The decode-only step with the median number of requests and the one with the most; and a full prefill
    step, with the 99th percentile of tokens over steps that prefill and the median number of requests of such
    steps. What the trace does not hold is left out; without any decode-only step, the smallest step comes
    first.

    Parameters
    ----------
    steps : DataFrame
        The cleaned steps: ``batch_size``, ``total_tokens``.
    """
    chosen = []
    decodes = decode_only(steps)["batch_size"]
    if decodes.empty:
        row = steps.nsmallest(1, "total_tokens").iloc[0]
        chosen.append(TypicalStep(SMALLEST, int(row["batch_size"]), int(row["total_tokens"])))
    else:
        median, largest = int(decodes.quantile(0.5, interpolation="nearest")), int(decodes.max())
        chosen.append(TypicalStep(MEDIAN_DECODE, median, median))
        if largest > median:
            chosen.append(TypicalStep(LARGEST_DECODE, largest, largest))
    mixed = steps[steps["total_tokens"] > steps["batch_size"]]
    if not mixed.empty:
        tokens = int(mixed["total_tokens"].quantile(_FULL_QUANTILE, interpolation="nearest"))
        full = mixed.loc[mixed["total_tokens"] >= _FULL_NEIGHBOURHOOD * tokens, "batch_size"]
        requests = int(full.quantile(0.5, interpolation="nearest"))
        chosen.append(TypicalStep(FULL_PREFILL, min(requests, tokens), tokens))
    return tuple(chosen)


def step_table(fit: FittedModel, typical: tuple[TypicalStep, ...], *, probability: float) -> pd.DataFrame:
    """Return what typical steps take.

    Parameters
    ----------
    fit : FittedModel
    typical : tuple of TypicalStep
    probability : float
        Of the predictive and of the mean band.

    Returns
    -------
    DataFrame
        One row a step: ``step``, ``batch_size``, ``total_tokens``; of the predictive distribution
        ``lower_ms``, ``median_ms``, ``upper_ms``, ``q99_ms`` (99th percentile); of the mean latency
        ``mean_lower_ms``, ``mean_median_ms``, ``mean_upper_ms``; ``extrapolation``.
    """
    names = pd.DataFrame(
        [(t.name, t.batch_size, t.total_tokens) for t in typical],
        columns=["step", "batch_size", "total_tokens"],
    )
    points = fit.completed(steps_arrays(names["batch_size"], names["total_tokens"]))
    return names.join(band_table(fit, points, probability=probability).reset_index(drop=True))


def band_table(fit: FittedModel, points: xr.Dataset, *, probability: float) -> pd.DataFrame:
    """Return the bands of steps, the columns from ``lower_ms`` on of :func:`step_table`; dims (step,)."""
    predictive = fit.predictive_band(points, probability=probability)
    mean = fit.mean_band(points, probability=probability)
    return pd.DataFrame(
        {
            "lower_ms": predictive["lower"].to_numpy(),
            "median_ms": predictive["median"].to_numpy(),
            "upper_ms": predictive["upper"].to_numpy(),
            "q99_ms": np.ravel(fit.quantile(points, 0.99)),
            "mean_lower_ms": mean["lower"].to_numpy(),
            "mean_median_ms": mean["median"].to_numpy(),
            "mean_upper_ms": mean["upper"].to_numpy(),
            "extrapolation": predictive["extrapolation"].to_numpy().astype(bool),
        }
    )


def cost_table(fit: FittedModel, typical: tuple[TypicalStep, ...], *, probability: float) -> pd.DataFrame:
    """Return what one more request and one more token add to the mean latency.

    Differences of the mean latency between neighbouring steps, which data identify well even where single
    parameters stay open: a decoding request more at the median decode step, and the average over the upper
    half of the tokens of a full prefill step. Where the model has departures by level, one request more may
    lead from one level to the next: the average from half to twice the median decode step, as far as the
    trace goes, stands instead.

    Parameters
    ----------
    fit : FittedModel
    typical : tuple of TypicalStep
    probability : float
        Of the credible interval.

    Returns
    -------
    DataFrame
        One row a cost: ``cost`` (what is one more), ``at`` (where, in words), ``unit``, ``lower``,
        ``median``, ``upper``.
    """
    by_name = {step.name: step for step in typical}
    rows = []
    if decode := by_name.get(MEDIAN_DECODE):
        few, many = _requests_between(fit, decode.batch_size)
        draws = _difference(fit, (few, few), (many, many)) / (many - few)
        rows.append((PER_REQUEST, f"decode-only steps, from {few} to {many} requests", "ms/request", draws))
    if full := by_name.get(FULL_PREFILL):
        b, high = full.batch_size, full.total_tokens
        low = max(b, high // 2)
        if low < high:
            draws = _difference(fit, (b, low), (b, high)) / (high - low)
            rows.append(
                (PER_TOKEN, f"steps of {b} requests, from {low:,} to {high:,} tokens", "ms/token", draws)
            )
    levels = [0.5 - probability / 2, 0.5, 0.5 + probability / 2]
    return pd.DataFrame(
        [(cost, at, unit, *np.quantile(draws, levels)) for cost, at, unit, draws in rows],
        columns=["cost", "at", "unit", "lower", "median", "upper"],
    )


def _requests_between(fit: FittedModel, median: int) -> tuple[int, int]:
    """Return the requests between which the cost of one more is averaged."""
    if not effects_of(fit.model):
        return median, median + 1
    cells = fit.cells
    seen = cells["batch_size"].to_numpy()[(cells["batch_size"] == cells["total_tokens"]).to_numpy()]
    few = max(median // 2, int(seen.min(initial=median)))
    return few, max(min(2 * median, int(seen.max(initial=median))), few + 1)


def _difference(
    fit: FittedModel, start: tuple[int, int], end: tuple[int, int]
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return draws of the mean latency at `end` minus that at `start` (B, S), ms."""
    mean = fit.mean_latency(fit.completed(steps_arrays([start[0], end[0]], [start[1], end[1]])))
    return np.ravel((mean.isel(step=1) - mean.isel(step=0)).to_numpy())


SUMMARY_VERSION = 1
"""Raised when a field of :meth:`Summary.to_dict` changes its meaning or goes."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Summary:
    """What a fit says, in numbers and in words.

    Attributes
    ----------
    metadata : FitMetadata
    probability : float
        Of every interval and band.
    converged : bool
    problems : tuple of str
        What the convergence gate found.
    table : DataFrame
        What typical steps take; columns of :func:`bayes_sched.reports.typical.step_table`.
    costs : DataFrame
        What one more request or token costs; columns of :func:`bayes_sched.reports.typical.cost_table`.
    coverage : DataFrame
        Share of the observed steps inside predictive bands: ``steps``, ``num_steps``, ``probability``,
        ``coverage``.
    parameters : DataFrame
        :meth:`FittedModel.parameter_table`, one row a parameter or combination.
    priors : DataFrame
        One row a parameter: ``parameter``, ``unit``, and of its prior ``low`` and ``high`` (central 95 %) and
        ``median``. Where a pool's took the place of the documented ones, as its draws have them, and
        the combinations that data identify with them.
    convergence : DataFrame
        One row a variable: ``variable``, ``kind``, ``r_hat``, ``ess_bulk``, ``ess_tail``, ``passed``.
    gate : dict
        ``num_divergences``, ``e_bfmi`` (a list, one a chain), ``num_draws``, ``num_gradients``.
    effects : DataFrame
        :func:`bayes_sched.plots.effect_table`; empty where the model has no effects.
    misfit : Discrepancy or None
        How much of the error a richer model would explain; None where there is no richer one.
    typical_load : str
        For what context the bands over (B, S) alone are, a sentence; empty where B and S say it all.
    sentences : tuple of str
        The plain-language paragraph.
    notes : tuple of str
        What to beware of; may be empty.
    calibration : Calibration
        The comparison of the observed steps with the predictive distribution.
    """

    metadata: FitMetadata
    probability: float
    converged: bool
    problems: tuple[str, ...]
    table: pd.DataFrame
    costs: pd.DataFrame
    coverage: pd.DataFrame
    parameters: pd.DataFrame
    priors: pd.DataFrame
    convergence: pd.DataFrame
    gate: dict[str, Any]
    effects: pd.DataFrame
    misfit: Discrepancy | None
    typical_load: str
    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    calibration: Calibration

    @property
    def text(self) -> str:
        """The paragraph, and one line for each warning after it."""
        return "\n".join([" ".join(self.sentences), *(f"Warning: {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values, ready for JSON; a missing number is None.

        Keys: ``summary_version``; ``name``, ``labels``, ``model``, ``noise``, ``trace_sha256``, ``traces``,
        ``rows``, ``cleaning``, ``bad_lines``, ``priors``, ``sampler``, ``timings_s``, ``package_versions``,
        ``bayes_sched_version``, ``command``, ``created_at``, ``prior_from`` as in
        :class:`~bayes_sched.metadata.FitMetadata`;
        ``probability``, ``converged``, ``problems``, ``text``, ``warnings``; ``typical_steps``, ``costs``,
        ``coverage``, ``parameters``, ``convergence``, ``effects``: lists with one mapping a row of the tables
        above; ``gate``; ``misfit``: the fields of :class:`~bayes_sched.Discrepancy`, or None;
        ``typical_load``.
        """
        metadata = self.metadata.to_attrs()
        described = {key: json.loads(str(metadata[key])) for key in metadata if key in _METADATA_KEYS}
        return {
            "summary_version": SUMMARY_VERSION,
            **described,
            "probability": self.probability,
            "converged": self.converged,
            "problems": list(self.problems),
            "text": " ".join(self.sentences),
            "warnings": list(self.notes),
            "typical_steps": records(self.table),
            "costs": records(self.costs),
            "coverage": records(self.coverage),
            "parameters": records(self.parameters),
            "convergence": records(self.convergence),
            "gate": self.gate,
            "effects": records(self.effects),
            "misfit": None if self.misfit is None else dataclasses.asdict(self.misfit),
            "typical_load": self.typical_load,
        }


_METADATA_KEYS = (
    "name",
    "labels",
    "model",
    "noise",
    "trace_sha256",
    "traces",
    "rows",
    "cleaning",
    "bad_lines",
    "priors",
    "sampler",
    "timings_s",
    "package_versions",
    "bayes_sched_version",
    "command",
    "created_at",
    "prior_from",
)


def summary(fit: FittedModel, steps: pd.DataFrame, *, probability: float = DEFAULT_PROBABILITY) -> Summary:
    """Say what a fit found.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame
        The cleaned steps, as :func:`~bayes_sched.reports.write_report` takes them.
    probability : float
        Of every interval and band, between 0 and 1.

    Returns
    -------
    Summary

    Raises
    ------
    InputError
        There are no steps, they lack a column of the model, or the probability is not between 0 and 1.
    """
    steps = reported_steps(fit, steps)
    typical = typical_steps(steps)
    calibration = calibrate(fit, steps)
    parameters = fit.parameter_table(probability=probability)
    gate = fit.convergence
    table = step_table(fit, typical, probability=probability)
    costs = cost_table(fit, typical, probability=probability)
    unexplained = estimate_discrepancy(fit, steps)
    typical_load = fit.typical.text(fit.model.columns)
    spoken = paragraph(fit, table, costs, parameters, calibration, probability=probability)
    advice = unexplained.advice if unexplained is not None and fit.converged else ""
    return Summary(
        metadata=fit.metadata,
        probability=probability,
        converged=fit.converged,
        problems=fit.metadata.problems,
        table=table,
        costs=costs,
        coverage=calibration.coverage,
        parameters=parameters,
        priors=prior_table(fit),
        convergence=gate.table.rename_axis("variable").reset_index(),
        gate={
            "num_divergences": gate.num_divergences,
            "e_bfmi": [float(value) for value in gate.e_bfmi],
            "num_draws": gate.num_draws,
            "num_gradients": gate.num_gradients,
        },
        effects=effect_table(fit, steps, probability=probability),
        misfit=unexplained,
        typical_load=typical_load,
        sentences=tuple(filter(None, (*spoken, typical_load, advice))),
        notes=notes(fit, table, calibration),
        calibration=calibration,
    )


def prior_table(fit: FittedModel) -> pd.DataFrame:
    """Return what the prior allowed each parameter; columns of :attr:`Summary.priors`."""
    documented = fit.metadata.priors if fit.metadata.prior_from is None else None
    known: dict[str, Any] = dict(known_priors(fit.prior[list(fit.metadata.priors)], documented))
    units = {p.name: p.unit for p in all_parameters(fit.model, fit.metadata.noise)}
    if documented is None:
        combinations = fit.model.combinations(fit.prior)
        known |= known_priors(combinations, None)
        units |= {str(name): str(draws.attrs.get("unit", "")) for name, draws in combinations.items()}
    return pd.DataFrame(
        [
            {"parameter": name, "unit": units[name], "low": p.low, "high": p.high, "median": p.median}
            for name, p in known.items()
        ]
    )


def reported_steps(fit: FittedModel, steps: pd.DataFrame) -> pd.DataFrame:
    """Return the steps that a report is on: those that hold every column of the model.

    Raises
    ------
    InputError
        A column is missing, or there are no steps.
    """
    missing = [name for name in fit.model.columns if name not in steps]
    if missing:
        raise InputError(
            f"the steps have no {', '.join(missing)}: a report on a fit of the model {fit.model.name} is "
            "made from steps with every column that it needs"
        )
    steps = steps.dropna(subset=[*fit.model.columns])
    if steps.empty:
        raise InputError("there are no steps to report on")
    return steps


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
        Of :mod:`bayes_sched.reports.typical`.
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
        Of :func:`bayes_sched.reports.typical.step_table`.
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
        ``batch_size``, ``total_tokens``, and the columns of :func:`bayes_sched.reports.typical.band_table`.
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


def prior_words(fit: FittedModel) -> str:
    """Return how to read what the priors allowed."""
    if fit.metadata.prior_from is not None:
        return (
            f"Latencies by the prior alone, which is from {fit.metadata.prior_from}. Observed ones should "
            "lie inside; where they do not, this server is unlike those of the pool."
        )
    return (
        "Latencies by the priors alone. They should cover the observed ones generously and leave the rest to "
        "the data."
    )


def report_figures(fit: FittedModel, steps: pd.DataFrame, summary: Summary) -> tuple[ReportFigure, ...]:
    """Return the figures in the order of the page; none is drawn yet.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame
        The cleaned steps.
    summary : Summary
    """
    p = summary.probability
    share = percent(p)
    calibration = summary.calibration
    load = f" {summary.typical_load}" if summary.typical_load else ""
    figures = (
        ReportFigure(
            "latency_by_tokens",
            "Latency against tokens",
            f"The light band is where {share} of the steps fall; the dark one is where the mean latency "
            f"lies, with {share} certainty. Dots are observed steps with about that many requests. Hatched "
            f"parts are extrapolation.{load}",
            lambda: latency_by_tokens(fit, steps, probability=p),
        ),
        ReportFigure(
            "latency_by_batch",
            "Latency of decode-only steps",
            "Every request of these steps decodes one token, so B = S. The slope is what one more "
            f"decoding request costs all of them. Bands and dots as above.{load}",
            lambda: latency_by_batch(fit, steps, probability=p),
        ),
        ReportFigure(
            "latency_contours",
            "Latency over requests and tokens",
            "Steps along a line take equally long. To keep a promise, stay on the near side of its line "
            "in the lower panel. Dots are steps of the trace; hatched parts are extrapolation. A step "
            f"cannot hold fewer tokens than requests.{load}",
            lambda: latency_contours(fit, steps),
        ),
        ReportFigure(
            "posterior_predictive_check",
            "Do the bands hold?",
            f"{calibration.text} Above, a line inside the grey band means that the predicted probabilities "
            "are right; in long traces look at its size more than at the grey band. Below, each dot "
            "should lie on the dashed line of its colour. These are the steps of the fit itself.",
            lambda: posterior_predictive_check(fit, steps, calibration=calibration),
        ),
        ReportFigure(
            "residuals",
            "What the equation does not explain",
            "The blue line is the running median of observed minus mean latency and should stay near "
            "zero; the band holds the middle 90% of the steps. Left in ms, right in units of the "
            "predicted noise, where the band should be equally wide everywhere.",
            lambda: residuals(fit, steps),
        ),
        ReportFigure(
            "effect_factors",
            "How far latencies depart from the equation",
            "A factor of 1.1 makes the part of the latency that it multiplies 10% longer than the equation "
            "says; the model's documentation names that part. A level is as wide as the values it holds. "
            "Blue ones have steps in the trace; of grey ones nothing was seen, and how far they may depart "
            "is what other levels were seen to do. Mind that each panel has its own scale.",
            lambda: effect_factors(fit, steps, probability=p),
        ),
        ReportFigure(
            "prior_posterior",
            "What the data taught about each parameter",
            "Where the blue posterior looks like the grey prior, the data say nothing about that "
            "parameter. A contraction of 1 means that all was learnt from the data, 0 nothing. "
            "Logarithmic axes; each shape is scaled to its own peak.",
            lambda: prior_posterior(fit),
        ),
        ReportFigure(
            "combination_pairs",
            "Combinations that the data identify",
            "Posterior draws, pair by pair. A narrow diagonal: the two trade off against each other. Two "
            "clouds: two explanations of the same trace.",
            lambda: combination_pairs(fit),
        ),
        ReportFigure(
            "ranks",
            "Do the chains agree?",
            "For each parameter and sampled coordinate, how the ranks of each chain's draws among all "
            "draws deviate from even. Lines inside the grey band: the chains explored the same "
            "distribution.",
            lambda: ranks(fit),
        ),
        ReportFigure(
            "prior_predictive",
            "What the priors allowed",
            prior_words(fit),
            lambda: prior_predictive(fit, steps),
        ),
    )
    return tuple(f for f in figures if f.name != "effect_factors" or not summary.effects.empty)


def render_page(summary: Summary, figures: Mapping[ReportFigure, Path]) -> str:
    """Return the page as one self-contained HTML document.

    Parameters
    ----------
    summary : Summary
    figures : mapping of ReportFigure to Path
        Each figure and its PNG file, in the order of the page.
    """
    metadata = summary.metadata
    values = {
        "summary": summary,
        "metadata": metadata,
        "made_at": date(metadata.created_at),
        "tables": {
            "steps": step_page(summary),
            "costs": cost_page(summary),
            "parameters": parameter_page(summary, combinations=False),
            "combinations": parameter_page(summary, combinations=True),
            "effects": effect_page(summary),
            "convergence": convergence_page(summary),
            "cleaning": cleaning_page(summary),
            "priors": prior_page(summary),
            "bad_lines": mapping_page(dict(metadata.bad_lines), ("reason", "lines")),
            "sampler": mapping_page(dict(metadata.sampler), ("setting", "value")),
            "timings": mapping_page(dict(metadata.timings_s), ("stage", "seconds")),
            "versions": mapping_page(dict(metadata.package_versions), ("package", "version")),
        },
    }
    return render("fit.html.j2", values, figures)


def write_report(
    fit: FittedModel,
    steps: pd.DataFrame,
    folder: str | Path,
    *,
    probability: float = DEFAULT_PROBABILITY,
) -> ReportPaths:
    """Write the report of a fit.

    ``report.html`` needs no other file. Beside it lie the same numbers with full precision, ``summary.json``
    and ``tables/*.csv``, and the figures, ``figures/*.png`` and ``*.svg``.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame
        The cleaned steps in the order of the trace: ``latency_ms`` (ms) and the model's columns; steps that
        lack one of them are left out. Further columns tell whether a richer model would predict better.
    folder : str or Path
        Made if it does not exist. Files of the same names are overwritten, others left alone.
    probability : float
        Of every interval and band, between 0 and 1.

    Returns
    -------
    ReportPaths

    Raises
    ------
    InputError
        There are no steps, they lack a column of the model, or the probability is not between 0 and 1.
    """
    steps = reported_steps(fit, steps)
    folder = Path(folder)
    found = summary(fit, steps, probability=probability)
    tables = write_tables(_tables(fit, steps, found), folder / "tables")
    figures = write_figures(report_figures(fit, steps, found), folder / "figures")
    page, numbers = folder / "report.html", folder / "summary.json"
    page.write_text(render_page(found, {f: png for f, (png, _) in figures.items()}), encoding="utf-8")
    write_json(found.to_dict(), numbers)
    return ReportPaths(page, numbers, tables, {figure.name: paths for figure, paths in figures.items()})


def _tables(fit: FittedModel, steps: pd.DataFrame, found: Summary) -> dict[str, pd.DataFrame]:
    tables = {
        "parameters": found.parameters,
        "convergence": found.convergence,
        "typical_steps": found.table,
        "costs": found.costs,
        "coverage": found.coverage,
        "latency_grid": latency_grid(fit, steps, probability=found.probability),
    }
    return tables if found.effects.empty else {**tables, "effects": found.effects}
