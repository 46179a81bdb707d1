"""The largest batch, or the largest token budget, that may be promised, and what the trace says of it.

A number may be promised where all steps up to it keep the limit at once: with the confidence asked for, over
the posterior draws, the asked quantile of the slowest of them does. So the search walks along a *line* of
steps that differ in one whole number, with a running maximum of the quantile of each draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from scipy import special

from bayes_sched.arrays import Bools, Floats, Ints
from bayes_sched.format import chance, chances, sureness
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.region import Region
from bayes_sched.sla.risk import Objective, flat_draws, step_risk
from bayes_sched.steps import steps_arrays

EXTRAPOLATION_FACTOR = 4
"""Outside the region of the data, a search goes up to so many times the largest seen requests or tokens."""
NEAR = 0.8
"""Steps from this share of a number up to it are near it; requests are alike by that factor either way."""
SIGNIFICANCE = 0.01
"""A promise is contradicted where so many late steps would come with at most this probability."""
FEW = 20
"""Fewer steps of the trace than that say little: a promise there rests on the equation."""

_SECTIONS = 32
_QUANTILES = ((0.05, "q05_ms"), (0.5, "median_ms"), (0.95, "q95_ms"))

type Span = tuple[int, int]
"""First and last number to search."""
type Evaluate = Callable[[xr.Dataset], Floats]
"""Steps (dim step) to latencies, ms, dims (draw, step)."""
type IsKept = Callable[[Floats], Bools]
"""Latencies, ms, dims (draw, ...), to whether they will do, dims (...)."""
type LimitedBy = Literal["slo", "data", "range", "nothing seen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The steps of the trace near a promise."""

    num_steps: int
    late_share: float | None
    """Share of them that took longer than the limit, at least; None where there are none."""
    is_contradicted: bool  # whether more of them are late than the promise can explain

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """A number up to which steps are allowed, and what allowing them means."""

    number: int  # requests of a decode-only batch, or tokens of a step
    probability: float
    """P(latency <= limit) of a step of exactly that number: risk; with its credible interval."""
    lower: float
    upper: float
    confidence: float  # that all steps up to the number keep the quantile, at once
    extrapolation: bool  # whether the trace holds no such steps
    evidence: Evidence

    @property
    def breach_text(self) -> str:
        """How many such steps take too long, in words."""
        ends = chances(1.0 - self.upper, 1.0 - self.lower)
        return f"{chance(1.0 - self.probability)} of such steps ({ends}) take longer"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimit:
    """How far one may go along a line of steps."""

    name: str  # what is limited, such as decode-only batch
    unit: str  # requests or tokens
    requests: int | None  # of every step, None for decode-only steps
    first: int | None
    """Where the search began and ended: the range of the data, or beyond where that was allowed; None where
    the trace holds no such steps."""
    last: int | None
    promised: Cap | None  # the largest number that may be promised; None where there is none
    limited_by: LimitedBy
    """``slo``: one more would break the promise. ``data``: the trace holds no larger steps, so that more may
    be possible. ``range``: the end of the search outside the data. ``nothing seen``: no such steps at all."""
    alone: Span | None
    """Where nothing may be promised as a cap: the first and the last number whose steps would keep the limit
    taken alone, if there are such; smaller steps are slower than they."""
    point: Cap | None  # the largest number that a single fitted curve allows, with what it would have meant
    point_is_edge: bool  # whether only the end of the search stopped the point estimate
    asked: Cap | None
    asked_is_trusted: bool | None  # whether the model is as confident of what was asked for as it should be
    asked_is_kept: bool | None
    """Whether it may be promised: trusted, within the data, and not contradicted by the trace."""

    @property
    def is_kept(self) -> bool:
        """Whether what was asked for may be promised; where nothing was, whether the largest may."""
        if self.asked_is_kept is not None:
            return self.asked_is_kept
        return self.promised is not None and not self.promised.evidence.is_contradicted

    @property
    def text(self) -> str:
        """Sentences a person can paste."""
        parts = (self._promise_text(), self._asked_text(), self._point_text())
        return " ".join(part for part in parts if part)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {**asdict(self), "is_kept": self.is_kept}

    def _promise_text(self) -> str:
        label = f"Largest {self.name}"
        if self.limited_by == "nothing seen":
            return f"{label}: none, the trace holds no such steps."
        if self.promised is None:
            none = f"none, not even the smallest searched ({self.first:,} {self.unit}) may be promised"
            if self.alone is None:
                return f"{label}: {none}."
            steps = "steps of {:,} to {:,} would keep it, but smaller ones are slower".format(*self.alone)
            return f"{label}: {none}. Taken alone, {steps}."
        why = {
            "slo": "one more would break the promise",
            "data": "the trace holds no larger steps, so more may be possible",
            "range": "the end of the search",
        }[self.limited_by]
        outside = ", EXTRAPOLATION: outside of the data" if self.promised.extrapolation else ""
        since = f", every step from {self.first:,} on" if (self.first or 1) > (self.requests or 1) else ""
        seen = self.promised.evidence.text
        return (
            f"{label}: {self.promised.number:,} {self.unit} ({why}{since}{outside}); there "
            f"{self.promised.breach_text}, and the confidence is {sureness(self.promised.confidence)}."
            f"{seen and f' {seen}'}"
        )

    def _asked_text(self) -> str:
        if self.asked is None:
            return ""
        verdict = "may be promised" if self.asked_is_kept else "may NOT be promised"
        outside = " (extrapolation: the trace holds no such steps)" if self.asked.extrapolation else ""
        # Where the model itself says no, there is nothing that the trace could contradict.
        seen = self.asked.evidence.text if self.asked_is_trusted else ""
        return (
            f"Asked for {self.asked.number:,} {self.unit}{outside}: {verdict}; {self.asked.breach_text}, and "
            f"the confidence is {sureness(self.asked.confidence)}.{seen and f' {seen}'}"
        )

    def _point_text(self) -> str:
        if self.limited_by == "nothing seen":
            return ""
        if self.point is None:
            return "A point estimate allows none either."
        edge = ", the end of the search" if self.point_is_edge else ""
        return f"A point estimate allows {self.point.number:,}{edge}: there {self.point.breach_text}."


@dataclass(frozen=True, slots=True)
class StepLine:
    """Steps that differ in one whole number: the tokens of so many requests, or decode-only batches."""

    requests: int | None = None
    """Of each step, and the number is its tokens; None: decode-only steps, and the number is both."""

    @property
    def first(self) -> int:
        """The smallest possible number."""
        return self.requests or 1

    @property
    def name(self) -> str:
        """What a limit along it is one of."""
        if self.requests is None:
            return "decode-only batch"
        return f"token budget with {self.requests - 1:,} decodes and a prefill"

    def span(self, region: Region, *, extrapolate: bool = False) -> Span | None:
        """Return the first and the last number to search, None where the trace holds none."""
        largest = region.reach[0 if self.requests is None else 1]
        if extrapolate:
            return self.first, max(self.first, EXTRAPOLATION_FACTOR * largest)
        numbers = np.arange(self.first, largest + 1)
        if not len(numbers):
            return None
        steps = steps_on([self], numbers[None, :])
        seen = numbers[region.contains(steps["batch_size"], steps["total_tokens"])]
        return (int(seen[0]), int(seen[-1])) if len(seen) else None


def steps_on(lines: Sequence[StepLine], numbers: Ints) -> xr.Dataset:
    """Return the steps at some numbers of some lines, dims (line, number) -> (step,), line by line."""
    requests = np.array([line.requests or 0 for line in lines])[:, None]
    batch_size = np.where(requests == 0, numbers, requests)
    return steps_arrays(batch_size.ravel(), numbers.ravel())


@dataclass(frozen=True, eq=False)
class StepSearch:
    """What a fit allows along lines of steps."""

    fit: FittedModel
    objective: Objective
    extrapolate: bool  # whether to search, and to promise, outside the region of the data
    probability: float  # of credible intervals
    max_draws: int | None

    def span(self, line: StepLine) -> Span | None:
        """Return the first and the last number of a line to search."""
        return line.span(self.fit.region, extrapolate=self.extrapolate)

    def promised(self, lines: Sequence[StepLine], spans: Sequence[Span]) -> tuple[int | None, ...]:
        """Return for each line the largest number that may be promised."""
        return largest_kept(lines, spans, evaluate=self.quantile_draws, is_kept=self.objective.is_surely_kept)

    def point_allowed(self, lines: Sequence[StepLine], spans: Sequence[Span]) -> tuple[int | None, ...]:
        """Return for each line the largest number that the posterior median of the mean latency allows.

        No single fitted curve does better: of single parameters data identify the combinations only.
        """

        def evaluate(steps: xr.Dataset) -> Floats:
            mean = self.fit.mean_latency(steps, max_draws=self.max_draws)
            return np.median(flat_draws(mean), axis=0, keepdims=True)

        limit_ms = self.objective.limit_ms
        return largest_kept(lines, spans, evaluate=evaluate, is_kept=lambda running: running[0] <= limit_ms)

    def limit(self, line: StepLine, asked: int | None = None) -> StepLimit:
        """Return how far one may go along a line; `asked`, at least its smallest step, is judged."""
        span = self.span(line)
        first, last = span or (line.first, line.first)
        (best,) = self.promised([line], [span]) if span else (None,)
        (point,) = self.point_allowed([line], [span]) if span else (None,)
        asked_cap = None if asked is None else self._cap(line, min(first, asked), asked)
        is_trusted = None if asked_cap is None else bool(self.objective.is_confident(asked_cap.confidence))
        is_kept = is_trusted
        if asked_cap is not None and (asked_cap.evidence.is_contradicted or self._is_outside(asked_cap)):
            is_kept = False
        return StepLimit(
            name=line.name,
            unit="requests" if line.requests is None else "tokens",
            requests=line.requests,
            first=first if span else None,
            last=last if span else None,
            promised=None if best is None else self._cap(line, first, best),
            limited_by=self.limited_by(best, last) if span else "nothing seen",
            alone=self._alone(line, span) if span and best is None else None,
            point=None if point is None else self._cap(line, first, point),
            point_is_edge=point == last,
            asked=asked_cap,
            asked_is_trusted=is_trusted,
            asked_is_kept=is_kept,
        )

    def limited_by(self, best: int | None, last: int) -> LimitedBy:
        """Return what stops a promise, where the search ends at `last`."""
        if best != last:
            return "slo"
        return "range" if self.extrapolate else "data"

    def _is_outside(self, cap: Cap) -> bool:
        return cap.extrapolation and not self.extrapolate

    def _cap(self, line: StepLine, first: int, number: int) -> Cap:
        steps = steps_on([line], np.array([[number]]))
        risk = step_risk(
            self.fit, steps, self.objective, probability=self.probability, max_draws=self.max_draws
        ).isel(step=0)
        up_to = self.quantile_draws(steps_on([line], tried_numbers(first, number)[None, :]))
        return Cap(
            number=number,
            probability=float(risk["probability"]),
            lower=float(risk["lower"]),
            upper=float(risk["upper"]),
            confidence=float(self.objective.confidence_of(up_to.max(axis=1))),
            extrapolation=bool(risk["extrapolation"]),
            evidence=evidence(self.fit, line, number, self.objective),
        )

    def _alone(self, line: StepLine, span: Span) -> Span | None:
        """Return the first and the last number whose steps keep the limit, each taken alone."""
        numbers = tried_numbers(*span)
        values = self.quantile_draws(steps_on([line], numbers[None, :]))
        kept = numbers[self.objective.is_surely_kept(values)]
        return (int(kept[0]), int(kept[-1])) if len(kept) else None

    def quantile_draws(self, steps: xr.Dataset) -> Floats:
        """Return the asked noise quantile of each draw, ms, dims (draw, step)."""
        return quantile_draws(self.fit, steps, self.objective.quantile, max_draws=self.max_draws)


def quantile_draws(fit: FittedModel, steps: xr.Dataset, quantile: float, *, max_draws: int | None) -> Floats:
    """Return the noise quantile of each draw, ms, dims (draw, step), the chains after one another."""
    return flat_draws(fit.quantile_draws(steps, quantile, max_draws=max_draws))


def tried_numbers(low: int, high: int) -> Ints:
    """Return whole numbers from `low` to `high`, all of them where they are few."""
    few = 4 * _SECTIONS
    return np.unique(np.rint(np.linspace(low, high, min(high - low + 1, few))).astype(np.int64))


def largest_kept(
    lines: Sequence[StepLine], spans: Sequence[Span], *, evaluate: Evaluate, is_kept: IsKept
) -> tuple[int | None, ...]:
    """Return for each line the largest number of its span up to which all steps keep the limit, or None.

    What is kept at some latencies must be kept at smaller ones.
    """
    low, high = (np.array(ends, dtype=np.int64) for ends in zip(*spans, strict=True))
    first, best = low.copy(), low - 1
    carried: Floats | None = None
    while (active := np.flatnonzero(low <= high)).size:
        numbers = _sections(low[active], high[active])
        values = evaluate(steps_on([lines[int(i)] for i in active], numbers))
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


def evidence(fit: FittedModel, line: StepLine, number: int, objective: Objective) -> Evidence:
    """Hold a promise up to a number of a line against the trace."""
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
        num_steps=num_steps, late_share=num_late / num_steps, is_contradicted=p_value < SIGNIFICANCE
    )
