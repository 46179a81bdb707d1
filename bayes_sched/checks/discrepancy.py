"""What a fit leaves unexplained, and how much of that a richer model would explain.

An estimate from the residuals of the fit at hand, without fitting another model. One half of the steps says
how residuals depend on what the richer model knows, the other half how much error goes away by that; then the
halves change places, so that noise that is merely imitated counts against the richer model, not for it.

1. The columns that the richer model has and this one has not, each with a positive slope: robust least
   squares by regime. B, S and a constant go along, since a richer model would choose its equation anew, but
   what they explain by themselves is not put down to the columns.
2. The levels of the richer model's effects: the median of the rest relative to the latency, level by level,
   drawn towards 0 as the levels' spread and their numbers of steps ask for.

A richer model is a shipped one that has every parameter and column of this one, and more. One that takes the
use of the KV cache for the context is considered where the trace tells no more of the context than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.optimize import lsq_linear

from bayes_sched.arrays import Floats, Ints
from bayes_sched.format import listed, number, percent
from bayes_sched.model.likelihood import PREFILL_COLUMN, Effect, effects_of
from bayes_sched.model.protocol import LatencyModel, load_model_file, shipped_models
from bayes_sched.posterior.fitted import FittedModel

MIN_SHARE = 0.1
"""A richer model is advised where at least so much of the error goes away."""
MIN_FURTHER_SHARE = 0.05
"""And one that is richer still where so much more does."""
MAX_STEPS = 12_000
"""Of a longer trace, a random sample of so many steps is looked at."""

_STAND_IN = "kv_cache_usage"
"""The column that stands for a step's context where a trace tells of it no more than that."""
_MAX_DRAWS = 200
_NUM_BLOCKS = 20
"""Neighbouring steps resemble each other: the halves are made of whole stretches of the trace."""
_MIN_ROWS = 20
_ROUNDS = 3
_REWEIGHTINGS = 12
_HUBER = 1.345
_SIZES = ("batch_size", "total_tokens")
_SEED = 20240501


@dataclass(frozen=True, slots=True, kw_only=True)
class Discrepancy:
    """How much of a fit's error a richer model would explain.

    Attributes
    ----------
    error_ms : float
        Mean absolute difference between the steps' latencies and the fit's mean latency.
    context_share : float
        Share of it that goes away with the further columns of the richer model.
    staircase_share : float
        Share of it that goes away, on top of that, with the richer model's departures by level.
    richer : str or None
        Name of the richer model that is worth fitting; of several, the shares are its; None if none is.
    lacking : tuple of str
        Columns that richer models need and the steps lack; empty where one of them can be fitted.
    """

    error_ms: float
    context_share: float = 0.0
    staircase_share: float = 0.0
    richer: str | None = None
    lacking: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Share of the error that goes away altogether."""
        return self.context_share + self.staircase_share

    @property
    def advice(self) -> str:
        """A sentence that says what to do; empty where there is nothing to gain."""
        if self.richer is None:
            return ""
        causes = []
        if round(self.context_share, 2) > 0.0:
            causes.append(f"the steps' context explains about {percent(self.context_share)}")
        if round(self.staircase_share, 2) > 0.0:
            more = "another" if causes else "explains about"
            causes.append(f"the staircase of latencies {more} {percent(self.staircase_share)}")
        return (
            f"Of the error left by this model ({number(self.error_ms)} ms a step on average), "
            f"{listed(causes)}: fit it with the model {self.richer}."
        )

    @property
    def text(self) -> str:
        """What a report says: the advice, that nothing is to be gained, or what to record to know."""
        if self.richer is not None:
            return f"{self.advice} An estimate: from one half of this fit's residuals for the other."
        if self.lacking:
            return (
                f"Richer models need {listed(list(self.lacking))} of every step, which this trace does not "
                "hold. The recorder of this project writes them down."
            )
        return (
            f"Steps differ from the mean latency by {number(self.error_ms)} ms on average; by its residuals, "
            f"no richer model would explain {percent(MIN_SHARE)} of that."
        )


def estimate_discrepancy(fit: FittedModel, steps: pd.DataFrame) -> Discrepancy | None:
    """Estimate how much of a fit's error a richer model would explain.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame
        The cleaned steps in the order of the trace: the model's columns, ``latency_ms`` (ms), and those
        further columns that the trace holds.

    Returns
    -------
    Discrepancy or None
        None where no shipped model is richer.
    """
    richer = richer_models(fit.model)
    if not richer:
        return None
    usable = [model for model in richer if _holds(steps, model.columns)]
    usable = [model for model in usable if _STAND_IN not in model.columns] or usable
    if not usable:
        lacking = tuple(c for c in richer[-1].columns if not _holds(steps, (c,)))
        return Discrepancy(error_ms=float(_table(fit, steps)["residual_ms"].abs().mean()), lacking=lacking)
    needed = sorted({column for model in usable for column in model.columns})
    table = _table(fit, steps.dropna(subset=needed))
    found = Discrepancy(error_ms=float(table["residual_ms"].abs().mean()))
    for model in usable:
        columns, effects = further_columns(fit.model, model), further_effects(fit.model, model)
        context, staircase = _shares(table, columns, effects)
        least = MIN_SHARE if found.richer is None else found.share + MIN_FURTHER_SHARE
        if context + staircase >= least:
            found = replace(found, context_share=context, staircase_share=staircase, richer=model.name)
    return found


def richer_models(model: LatencyModel) -> list[LatencyModel]:
    """Return the shipped models with every parameter and column of a model, and more; the simplest first."""
    shipped, own = [load_model_file(name).model for name in shipped_models()], {*_names(model)}
    richer = [other for other in shipped if own < {*_names(other)} and {*model.columns} <= {*other.columns}]
    return sorted(richer, key=lambda other: len(other.parameters))


def further_columns(model: LatencyModel, richer: LatencyModel) -> tuple[str, ...]:
    """Return the quantities that the richer model knows of a step besides its regime and the model's own."""
    return tuple(c for c in richer.columns if c not in {*model.columns, PREFILL_COLUMN})


def further_effects(model: LatencyModel, richer: LatencyModel) -> tuple[Effect, ...]:
    """Return the effects on the latency that the richer model has besides the model's own."""
    own = {effect.name for effect in effects_of(model)}
    return tuple(effect for effect in effects_of(richer) if effect.name not in own and not effect.noise)


def _names(model: LatencyModel) -> list[str]:
    return [p.name for p in model.parameters]


def _holds(steps: pd.DataFrame, columns: Sequence[str]) -> bool:
    return all(column in steps for column in columns) and len(steps.dropna(subset=[*columns])) >= _MIN_ROWS


def _table(fit: FittedModel, steps: pd.DataFrame) -> pd.DataFrame:
    """Return some of the steps in their order, with ``mean_ms`` and ``residual_ms``."""
    if len(steps) > MAX_STEPS:
        steps = steps.sample(MAX_STEPS, random_state=_SEED).sort_index()
    mean_ms = fit.mean_latency(steps, max_draws=_MAX_DRAWS).mean(("chain", "draw")).to_numpy()
    return steps.assign(mean_ms=mean_ms, residual_ms=steps["latency_ms"].to_numpy(np.float64) - mean_ms)


def _shares(table: pd.DataFrame, columns: Sequence[str], effects: Sequence[Effect]) -> tuple[float, float]:
    """Return the shares of the mean absolute residual that go away with columns, and with effects on top."""
    half = np.arange(len(table)) * _NUM_BLOCKS // len(table) % 2
    residual = table["residual_ms"].to_numpy(np.float64)
    sizes_alone, with_columns, with_levels = residual.copy(), residual.copy(), residual.copy()
    for tested in (half == 0, half == 1):
        train, test = table[~tested], table[tested]
        if columns:
            sizes_alone[tested] -= _line(train, test, ())
            predicted = _line(train, table, columns)
            with_columns[tested] -= predicted[tested]
            train = train.assign(residual_ms=train["residual_ms"] - predicted[~tested])
        with_levels[tested] = with_columns[tested] - _levels(train, test, effects)
    error, alone, columned, levelled = (
        float(np.abs(rest).mean()) for rest in (residual, sizes_alone, with_columns, with_levels)
    )
    if error == 0.0:
        return 0.0, 0.0
    context = max(alone - columned, 0.0) / error
    total = max(error - levelled, 0.0) / error if effects else context
    return context, max(total - context, 0.0)


def _line(train: pd.DataFrame, test: pd.DataFrame, columns: Sequence[str]) -> Floats:
    """Return what a robust line through the residuals of each regime says of other steps, ms."""
    predicted = np.zeros(len(test))
    for has_prefill in (False, True):
        own = train[(train[PREFILL_COLUMN] > 0) == has_prefill]
        other = ((test[PREFILL_COLUMN] > 0) == has_prefill).to_numpy()
        varying = [c for c in (*_SIZES, *columns) if own[c].min() < own[c].max()]
        if len(own) < _MIN_ROWS or not other.any():
            continue
        largest = own[varying].max().to_numpy(np.float64)
        lowest = np.array([-np.inf, *(0.0 if c in columns else -np.inf for c in varying)])
        residual = own["residual_ms"].to_numpy(np.float64)
        slopes = _robust_slopes(_design(own[varying], largest), residual, lowest)
        predicted[other] = _design(test.loc[other, varying], largest) @ slopes
    return predicted


def _design(columns: pd.DataFrame, largest: Floats) -> Floats:
    return np.column_stack([np.ones(len(columns)), columns.to_numpy(np.float64) / largest])


def _robust_slopes(design: Floats, observed: Floats, lowest: Floats) -> Floats:
    """Return slopes, none below its lowest, by least squares with Huber's weights, found by iteration."""
    root, bounds = np.ones(len(observed)), (lowest, np.inf)
    for _ in range(_REWEIGHTINGS):
        slopes: Floats = lsq_linear(design * root[:, None], observed * root, bounds=bounds, method="bvls").x
        distance = np.abs(observed - design @ slopes)
        width = max(_HUBER * 1.48 * float(np.median(distance)), 1e-9)
        root = np.sqrt(np.minimum(1.0, width / np.maximum(distance, width)))
    return slopes


def _levels(train: pd.DataFrame, test: pd.DataFrame, effects: Sequence[Effect]) -> Floats:
    """Return what the levels of effects say of other steps, ms: medians relative to the latency, shrunk."""
    relative = (train["residual_ms"] / train["mean_ms"]).to_numpy(np.float64)
    factors = {effect.name: np.zeros(effect.num_levels) for effect in effects}
    for _ in range(_ROUNDS if len(effects) > 1 else 1):
        for effect in effects:
            factors[effect.name] = np.zeros(effect.num_levels)
            rest = relative - _at(factors, effects, train)
            acted = effect.acts_on(train).to_numpy()
            factors[effect.name] = _shrunk(rest[acted], effect.level(train[effect.column])[acted], effect)
    departure: Floats = _at(factors, effects, test) * test["mean_ms"].to_numpy(np.float64)
    return departure


def _at(factors: dict[str, Floats], effects: Sequence[Effect], steps: pd.DataFrame) -> Floats:
    total = np.zeros(len(steps))
    for effect in effects:
        total += effect.acts_on(steps).to_numpy() * factors[effect.name][effect.level(steps[effect.column])]
    return total


def _shrunk(values: Floats, level: Ints, effect: Effect) -> Floats:
    """Return the medians of the levels, each drawn towards 0 by what its few steps leave open."""
    factors = np.zeros(effect.num_levels)
    if len(values) < _MIN_ROWS:
        return factors
    groups = pd.Series(values).groupby(level)
    medians, count = groups.median(), groups.size().to_numpy(np.float64)
    width = 1.48 * float((pd.Series(values) - groups.transform("median")).abs().median())
    error_squared = (1.25 * width) ** 2 / count
    spread_squared = max(float((medians**2).mean() - error_squared.mean()), 0.0)
    if spread_squared > 0.0:
        factors[medians.index.to_numpy()] = medians * spread_squared / (spread_squared + error_squared)
    return factors
