"""Typical steps of a trace: what they take, and what one more request or token adds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bayes_sched.arrays import Floats
from bayes_sched.model.likelihood import effects_of
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.prediction import band_levels
from bayes_sched.steps import steps_arrays

MEDIAN_DECODE = "median decode step"
LARGEST_DECODE = "largest decode step"
FULL_PREFILL = "full prefill step"
SMALLEST = "smallest step"

PER_REQUEST = "one more decoding request"
PER_TOKEN = "one more prefill token"

_ENDS = ("first_requests", "first_tokens", "last_requests", "last_tokens")
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
    first. `steps` are the cleaned ones: ``batch_size``, ``total_tokens``.
    """
    chosen = []
    decodes = steps.loc[steps["batch_size"] == steps["total_tokens"], "batch_size"]
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


def size_table(typical: tuple[TypicalStep, ...]) -> pd.DataFrame:
    """Return typical steps as a table: ``step`` (the name), ``batch_size``, ``total_tokens``."""
    return pd.DataFrame(list(typical)).rename(columns={"name": "step"})


def band_table(fit: FittedModel, sizes: pd.DataFrame, *, probability: float) -> pd.DataFrame:
    """Return what steps of some sizes take.

    The columns of `sizes`, ``batch_size`` and ``total_tokens`` among them; of the predictive distribution
    ``lower_ms``, ``median_ms``, ``upper_ms``, ``q99_ms`` (99th percentile); of the mean latency
    ``mean_lower_ms``, ``mean_median_ms``, ``mean_upper_ms``; ``extrapolation``.
    """
    points = steps_arrays(sizes["batch_size"], sizes["total_tokens"])
    quantiles = fit.quantile(points, [*band_levels(probability), 0.99]).to_numpy()
    mean = fit.mean_band(points, probability=probability)
    return sizes.assign(
        **dict(zip(("lower_ms", "median_ms", "upper_ms", "q99_ms"), quantiles, strict=True)),
        **{f"mean_{end}_ms": mean[end].to_numpy() for end in ("lower", "median", "upper")},
        extrapolation=mean["extrapolation"].to_numpy().astype(bool),
    )


def cost_table(fit: FittedModel, typical: tuple[TypicalStep, ...], *, probability: float) -> pd.DataFrame:
    """Return what one more request and one more token add to the mean latency.

    Differences of the mean latency between neighbouring steps, which data identify well even where single
    parameters stay open: a decoding request more at the median decode step, and the average over the upper
    half of the tokens of a full prefill step. Where the model has departures by level, one request more may
    lead from one level to the next: the average from half to twice the median decode step, as far as the
    trace goes, stands instead.

    One row a cost: ``cost`` (what is one more), ``at`` (where, in words), ``unit``, ``lower``, ``median``,
    ``upper``, and requests and tokens of the ends: ``first_requests``, ``first_tokens``, ``last_requests``,
    ``last_tokens``.
    """
    by_name = {step.name: step for step in typical}
    rows = []
    if decode := by_name.get(MEDIAN_DECODE):
        few, many = _requests_between(fit, decode.batch_size)
        draws = _difference(fit, (few, few), (many, many)) / (many - few)
        at = f"decode-only steps, from {few} to {many} requests"
        rows.append((PER_REQUEST, at, "ms/request", (few, few, many, many), draws))
    if full := by_name.get(FULL_PREFILL):
        b, high = full.batch_size, full.total_tokens
        low = max(b, high // 2)
        if low < high:
            draws = _difference(fit, (b, low), (b, high)) / (high - low)
            at = f"steps of {b} requests, from {low:,} to {high:,} tokens"
            rows.append((PER_TOKEN, at, "ms/token", (b, low, b, high), draws))
    levels = [0.5 - probability / 2, 0.5, 0.5 + probability / 2]
    return pd.DataFrame(
        [(cost, at, unit, *np.quantile(draws, levels), *ends) for cost, at, unit, ends, draws in rows],
        columns=["cost", "at", "unit", "lower", "median", "upper", *_ENDS],
    )


def _requests_between(fit: FittedModel, median: int) -> tuple[int, int]:
    """Return the requests between which the cost of one more is averaged."""
    if not effects_of(fit.model):
        return median, median + 1
    cells = fit.cells
    seen = cells["batch_size"].to_numpy()[(cells["batch_size"] == cells["total_tokens"]).to_numpy()]
    few = max(median // 2, int(seen.min(initial=median)))
    return few, max(min(2 * median, int(seen.max(initial=median))), few + 1)


def _difference(fit: FittedModel, start: tuple[int, int], end: tuple[int, int]) -> Floats:
    """Return draws of the mean latency at `end` minus that at `start` (B, S), ms."""
    mean = fit.mean_latency(fit.completed(steps_arrays([start[0], end[0]], [start[1], end[1]])))
    draws: Floats = np.ravel((mean.isel(step=1) - mean.isel(step=0)).to_numpy())
    return draws
