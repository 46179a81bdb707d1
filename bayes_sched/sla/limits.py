"""The largest batch, or the largest token budget, that may be promised."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import special

from bayes_sched.arrays import Floats, Ints
from bayes_sched.format import chance, chances, sureness
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.region import TOLERANCE, Region
from bayes_sched.sla.risk import Objective, step_risk
from bayes_sched.steps import steps_arrays

EXTRAPOLATION_FACTOR = 4
"""Outside the region of the data, a search goes up to so many times the largest seen requests or tokens."""


@dataclass(frozen=True, slots=True)
class Line:
    """Steps that differ in one whole number.

    Attributes
    ----------
    requests : int or None
        Requests of each step, and the number is its tokens; None: decode-only steps, and the number is both.
    """

    requests: int | None = None

    @property
    def first(self) -> int:
        """The smallest possible number."""
        return self.requests or 1

    def span(self, region: Region, *, extrapolate: bool = False) -> tuple[int, int] | None:
        """Return the first and the last number to search, None where the trace holds none.

        A convex region meets a line in one piece, so everything between the two has been seen.

        Parameters
        ----------
        region : Region
            Where the trace has steps.
        extrapolate : bool
            Whether to go outside of it.
        """
        largest = math.exp(float(region.corners[:, 0 if self.requests is None else 1].max()) + TOLERANCE)
        if extrapolate:
            return self.first, max(self.first, math.floor(EXTRAPOLATION_FACTOR * largest))
        numbers = np.arange(self.first, math.ceil(largest) + 1)
        if not len(numbers):
            return None
        steps = steps_on([self], numbers[None, :])
        seen = numbers[region.contains(steps["batch_size"], steps["total_tokens"]).to_numpy()]
        return (int(seen[0]), int(seen[-1])) if len(seen) else None


def steps_on(lines: list[Line], numbers: Ints) -> xr.Dataset:
    """Return the steps at some numbers of some lines.

    Parameters
    ----------
    lines : list of Line
    numbers : ndarray, dims (line, number)

    Returns
    -------
    Dataset, dims (step,)
        Line by line.
    """
    requests = np.array([line.requests or 0 for line in lines])[:, None]
    batch_size = np.where(requests == 0, numbers, requests)
    return steps_arrays(batch_size.ravel(), numbers.ravel())


_SECTIONS = 32

type Evaluate = Callable[[xr.Dataset], Floats]
"""Steps (dim step) to latencies, ms, dims (draw, step)."""
type IsKept = Callable[[Floats], NDArray[np.bool_]]
"""Latencies, ms, dims (draw, ...), to whether they will do, dims (...)."""


def largest_kept(
    lines: list[Line], spans: list[tuple[int, int]], *, evaluate: Evaluate, is_kept: IsKept
) -> tuple[int | None, ...]:
    """Return for each line the largest number up to which all steps keep the limit.

    Parameters
    ----------
    lines : list of Line
    spans : list of tuple of int
        First and last number to search of each line.
    evaluate : callable
    is_kept : callable
        What is kept at some latencies must be kept at smaller ones.

    Returns
    -------
    tuple of int or None
        None where the first step of a line does not keep the limit.
    """
    low, high = (np.array(ends, dtype=np.int64) for ends in zip(*spans, strict=True))
    first, best = low.copy(), low - 1
    carried: Floats | None = None
    while (active := np.flatnonzero(low <= high)).size:
        numbers = _sections(low[active], high[active])
        values = evaluate(steps_on([lines[i] for i in active], numbers))
        values = values.reshape(values.shape[0], *numbers.shape)
        if carried is None:
            carried = np.full((values.shape[0], len(lines)), -np.inf)
        running = np.maximum.accumulate(np.maximum(values, carried[:, active, None]), axis=2)
        kept = is_kept(running)
        for place, i in enumerate(active):
            count = int(kept[place].sum())  # a running maximum is kept up to somewhere and not beyond
            if count:
                best[i] = numbers[place, count - 1]
                carried[:, i] = running[:, place, count - 1]
            following = numbers[place, count] if count < numbers.shape[1] else high[i] + 1
            low[i], high[i] = best[i] + 1, following - 1
    return tuple(int(b) if b >= f else None for b, f in zip(best, first, strict=True))


def _sections(low: Ints, high: Ints) -> Ints:
    """Return whole numbers from `low` to `high`, evenly spread, dims (line, number); few of them repeat."""
    shares = np.linspace(0.0, 1.0, _SECTIONS + 1)
    return np.rint(low[:, None] + (high - low)[:, None] * shares).astype(np.int64)


def promised(
    fit: FittedModel,
    lines: list[Line],
    spans: list[tuple[int, int]],
    objective: Objective,
    *,
    max_draws: int | None,
) -> tuple[int | None, ...]:
    """Return for each line the largest number that may be promised."""

    def evaluate(steps: xr.Dataset) -> Floats:
        return quantile_draws(fit, steps, objective.quantile, max_draws=max_draws)

    def is_kept(running: Floats) -> NDArray[np.bool_]:
        return objective.is_confident(objective.confidence_of(running))

    return largest_kept(lines, spans, evaluate=evaluate, is_kept=is_kept)


def point_allowed(
    fit: FittedModel,
    lines: list[Line],
    spans: list[tuple[int, int]],
    objective: Objective,
    *,
    max_draws: int | None,
) -> tuple[int | None, ...]:
    """Return for each line the largest number that a single fitted curve allows.

    The curve is the posterior median of the mean latency: the best that a point estimate can be. (Means or
    medians of single parameters do worse, as data identify their combinations only.)
    """

    def evaluate(steps: xr.Dataset) -> Floats:
        mean = fit.mean_latency(steps, max_draws=max_draws)
        return np.median(_flat(mean), axis=0, keepdims=True)

    return largest_kept(
        lines, spans, evaluate=evaluate, is_kept=lambda running: running[0] <= objective.limit_ms
    )


def quantile_draws(fit: FittedModel, steps: xr.Dataset, quantile: float, *, max_draws: int | None) -> Floats:
    """Return the noise quantile of each draw, ms, dims (draw, step), the chains after one another."""
    return _flat(fit.quantile_draws(steps, quantile, max_draws=max_draws))


def joint_confidence(
    fit: FittedModel, line: Line, numbers: Ints, objective: Objective, *, max_draws: int | None
) -> float:
    """Return the confidence that the steps at some numbers of a line keep the limit, all at once."""
    steps = steps_on([line], numbers[None, :])
    values = quantile_draws(fit, steps, objective.quantile, max_draws=max_draws)
    return float(objective.confidence_of(values.max(axis=1)))


def tried_numbers(low: int, high: int) -> Ints:
    """Return whole numbers from `low` to `high`, all of them where they are few."""
    few = 4 * _SECTIONS
    return np.unique(np.rint(np.linspace(low, high, min(high - low + 1, few))).astype(np.int64))


def _flat(draws: xr.DataArray) -> Floats:
    values: Floats = draws.transpose("chain", "draw", "step").to_numpy()
    return values.reshape(-1, values.shape[-1])


NEAR = 0.8
"""Steps from this share of a number up to it are near it; requests are alike by that factor either way."""
SIGNIFICANCE = 0.01
"""A promise is contradicted where so many late steps would come with at most this probability."""

FEW = 20
"""Fewer steps of the trace than that say little: a promise there rests on the equation."""

_QUANTILES = ((0.05, "q05_ms"), (0.5, "median_ms"), (0.95, "q95_ms"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The steps of the trace near a promise.

    Attributes
    ----------
    num_steps : int
        How many there are.
    late_share : float or None
        Share of them that took longer than the limit, at least; None where there are none.
    is_contradicted : bool
        Whether more of them are late than the promise can explain.
    """

    num_steps: int
    late_share: float | None
    is_contradicted: bool

    @property
    def text(self) -> str:
        """What a person has to know of it; empty where the trace bears the promise out."""
        if self.is_contradicted and self.late_share is not None:
            return (
                f"The trace CONTRADICTS this: of its {self.num_steps:,} steps near it at least "
                f"{chance(self.late_share)} took longer, so the model does not describe them."
            )
        if self.num_steps < FEW:
            count = f"{self.num_steps:,} step{'' if self.num_steps == 1 else 's'}"
            return f"The trace holds {count} near it: this rests on the equation."
        return ""


def evidence(fit: FittedModel, line: Line, number: int, objective: Objective) -> Evidence:
    """Hold a promise against the trace.

    Parameters
    ----------
    fit : FittedModel
    line : Line
    number : int
        Requests of decode-only steps, or tokens.
    objective : Objective
    """
    cells = fit.cells.to_dataframe()
    requests, tokens = cells["batch_size"], cells["total_tokens"]
    if line.requests is None:
        is_near = (requests == tokens) & tokens.between(NEAR * number, number)
    else:
        is_like = requests.between(NEAR * line.requests, line.requests / NEAR)
        is_near = is_like & tokens.between(max(NEAR * number, line.requests), number)
    near = cells[is_near]
    num_steps = int(near["count"].sum())
    if not num_steps:
        return Evidence(num_steps=0, late_share=None, is_contradicted=False)
    counts = near["count"].to_numpy(float)
    late = np.zeros(len(near))
    for level, column in _QUANTILES:
        # The cell's quantile is late, and so is what lies above it: so many steps, or more.
        at_least = np.maximum(np.floor((1.0 - level) * (counts - 1.0)) + 1.0, 1.0)
        late = np.maximum(late, np.where(near[column] > objective.limit_ms, at_least, 0.0))
    num_late = int(late.sum())
    p_value = float(special.bdtrc(num_late - 1, num_steps, 1.0 - objective.quantile)) if num_late else 1.0
    return Evidence(
        num_steps=num_steps,
        late_share=num_late / num_steps,
        is_contradicted=p_value < SIGNIFICANCE,
    )


type LimitedBy = Literal["slo", "data", "range", "nothing seen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """A number up to which steps are allowed, and what allowing them means.

    Attributes
    ----------
    number : int
        Requests of a decode-only batch, or tokens of a step.
    probability : float
        P(latency <= limit) of a step of exactly that number: risk.
    lower, upper : float
        Its credible interval.
    confidence : float
        That all steps up to the number keep the quantile, at once.
    extrapolation : bool
        Whether the trace holds no such steps.
    evidence : Evidence
        What the steps of the trace near the number say.
    """

    number: int
    probability: float
    lower: float
    upper: float
    confidence: float
    extrapolation: bool
    evidence: Evidence

    @property
    def breach_text(self) -> str:
        """How many such steps take too long, in words."""
        ends = chances(1.0 - self.upper, 1.0 - self.lower)
        return f"{chance(1.0 - self.probability)} of such steps ({ends}) take longer"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimit:
    """How far one may go along a line of steps.

    Attributes
    ----------
    name : str
        What is limited, such as ``decode-only batch``.
    unit : str
        ``requests`` or ``tokens``.
    requests : int or None
        Requests of every step, None for decode-only steps.
    first, last : int or None
        Where the search began and ended: the range of the data, or beyond where that was allowed; None where
        the trace holds no such steps.
    promised : Cap or None
        The largest number that may be promised; None where there is none.
    limited_by : str
        ``slo``: one more would break the promise. ``data``: the trace holds no larger steps, so that more may
        be possible. ``range``: the end of the search outside the data. ``nothing seen``: the trace holds no
        such steps at all.
    alone : tuple of int or None
        Where nothing may be promised as a cap: the first and the last number whose steps would keep the limit
        taken alone, if there are such; smaller steps are slower than they.
    point : Cap or None
        The largest number that a single fitted curve allows, with what it would have meant.
    point_is_edge : bool
        Whether only the end of the search stopped the point estimate.
    asked : Cap or None
        What was asked for.
    asked_is_trusted : bool or None
        Whether the model is as confident of it as asked.
    asked_is_kept : bool or None
        Whether it may be promised: trusted, within the data, and not contradicted by the trace.
    """

    name: str
    unit: str
    requests: int | None
    first: int | None
    last: int | None
    promised: Cap | None
    limited_by: LimitedBy
    alone: tuple[int, int] | None
    point: Cap | None
    point_is_edge: bool
    asked: Cap | None
    asked_is_trusted: bool | None
    asked_is_kept: bool | None

    @property
    def is_kept(self) -> bool:
        """Whether what was asked for may be promised; where nothing was, whether the largest may."""
        if self.asked_is_kept is not None:
            return self.asked_is_kept
        return self.promised is not None and not self.promised.evidence.is_contradicted

    @property
    def text(self) -> str:
        """Sentences a person can paste."""
        parts = [
            self._promise_text(),
            "" if self.promised is None else self.promised.evidence.text,
            self._asked_text(),
            # Where the model itself says no, there is nothing that the trace could contradict.
            "" if self.asked is None or not self.asked_is_trusted else self.asked.evidence.text,
            self._point_text(),
        ]
        return " ".join(part for part in parts if part)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {**asdict(self), "is_kept": self.is_kept}

    def _promise_text(self) -> str:
        label = f"Largest {self.name}"
        if self.limited_by == "nothing seen":
            return f"{label}: none, the trace holds no such steps."
        if self.promised is None:
            alone = ""
            if self.alone is not None:
                alone = (
                    " Taken alone, steps of {:,} to {:,} would keep it, but smaller ones are slower.".format(
                        *self.alone
                    )
                )
            smallest = f"not even the smallest searched ({self.first:,} {self.unit}) may be promised"
            return f"{label}: none, {smallest}.{alone}"
        why = {
            "slo": "one more would break the promise",
            "data": "the trace holds no larger steps, so more may be possible",
            "range": "the end of the search",
            "nothing seen": "",
        }[self.limited_by]
        outside = ", EXTRAPOLATION: outside of the data" if self.promised.extrapolation else ""
        since = f", every step from {self.first:,} on" if (self.first or 1) > (self.requests or 1) else ""
        return (
            f"{label}: {self.promised.number:,} {self.unit} ({why}{since}{outside}); there "
            f"{self.promised.breach_text}, and the confidence is {sureness(self.promised.confidence)}."
        )

    def _asked_text(self) -> str:
        if self.asked is None:
            return ""
        verdict = "may be promised" if self.asked_is_kept else "may NOT be promised"
        outside = " (extrapolation: the trace holds no such steps)" if self.asked.extrapolation else ""
        return (
            f"Asked for {self.asked.number:,} {self.unit}{outside}: {verdict}; {self.asked.breach_text}, and "
            f"the confidence is {sureness(self.asked.confidence)}."
        )

    def _point_text(self) -> str:
        if self.limited_by == "nothing seen":
            return ""
        if self.point is None:
            return "A point estimate allows none either."
        edge = ", the end of the search" if self.point_is_edge else ""
        return f"A point estimate allows {self.point.number:,}{edge}: there {self.point.breach_text}."


def step_limit(
    fit: FittedModel,
    line: Line,
    objective: Objective,
    *,
    asked: int | None = None,
    extrapolate: bool = False,
    probability: float,
    max_draws: int | None,
) -> StepLimit:
    """Return how far one may go along a line of steps.

    Parameters
    ----------
    fit : FittedModel
    line : Line
    objective : Objective
    asked : int, optional
        A number to be judged, at least that of the line's smallest step.
    extrapolate : bool
        Whether to search, and to promise, outside the region of the data.
    probability : float
        Of credible intervals.
    max_draws : int or None
    """

    def cap(number: int | None, first: int) -> Cap | None:
        return None if number is None else _cap(fit, line, first, number, objective, probability, max_draws)

    span = line.span(fit.region, extrapolate=extrapolate)
    first, last = span or (line.first, line.first)
    spans = [(first, last)]
    best = promised(fit, [line], spans, objective, max_draws=max_draws)[0] if span else None
    point = point_allowed(fit, [line], spans, objective, max_draws=max_draws)[0] if span else None
    asked_cap = cap(asked, min(first, asked or first))
    is_trusted = None if asked_cap is None else bool(objective.is_confident(asked_cap.confidence))
    return StepLimit(
        name=_name(line),
        unit="requests" if line.requests is None else "tokens",
        requests=line.requests,
        first=first if span else None,
        last=last if span else None,
        promised=cap(best, first),
        limited_by=_limited_by(span, best, extrapolate=extrapolate),
        alone=_alone(fit, line, span, objective, max_draws=max_draws) if span and best is None else None,
        point=cap(point, first),
        point_is_edge=point == last,
        asked=asked_cap,
        asked_is_trusted=is_trusted,
        asked_is_kept=None
        if asked_cap is None
        else bool(is_trusted)
        and (extrapolate or not asked_cap.extrapolation)
        and not asked_cap.evidence.is_contradicted,
    )


def _alone(
    fit: FittedModel, line: Line, span: tuple[int, int], objective: Objective, *, max_draws: int | None
) -> tuple[int, int] | None:
    """Return the first and the last number whose steps keep the limit, each taken alone."""
    numbers = tried_numbers(*span)
    values = quantile_draws(fit, steps_on([line], numbers[None, :]), objective.quantile, max_draws=max_draws)
    kept = numbers[objective.is_confident(objective.confidence_of(values))]
    return (int(kept[0]), int(kept[-1])) if len(kept) else None


def _name(line: Line) -> str:
    if line.requests is None:
        return "decode-only batch"
    return f"token budget with {line.requests - 1:,} decodes and a prefill"


def _limited_by(span: tuple[int, int] | None, best: int | None, *, extrapolate: bool) -> LimitedBy:
    if span is None:
        return "nothing seen"
    if best != span[1]:
        return "slo"
    return "range" if extrapolate else "data"


def _cap(
    fit: FittedModel,
    line: Line,
    first: int,
    number: int,
    objective: Objective,
    probability: float,
    max_draws: int | None,
) -> Cap:
    steps = steps_on([line], np.array([[number]]))
    risk = step_risk(fit, steps, objective, probability=probability, max_draws=max_draws).isel(step=0)
    numbers = tried_numbers(first, number)
    return Cap(
        number=number,
        probability=float(risk["probability"]),
        lower=float(risk["lower"]),
        upper=float(risk["upper"]),
        confidence=joint_confidence(fit, line, numbers, objective, max_draws=max_draws),
        extrapolation=bool(risk["extrapolation"]),
        evidence=evidence(fit, line, number, objective),
    )
